//! Building, reading, cutting, joining and quantizing ONNX graphs, taking rows of their weights,
//! and expanding weights of quantized blocks. This module runs no graph.
//!
//! Every large initializer is *external data*, a place in a file of the family's folder (see
//! [`external`]). A model here is therefore a few kilobytes, and the runtime maps the weights.
//! [`GraphBuilder`] builds graphs; [`cut`] takes an export apart.

mod articulation;
mod batch;
pub mod blocks;
mod build;
mod cut;
mod error;
mod expand;
pub mod external;
#[cfg(test)]
mod fuzz_tests;
mod join;
mod links;
mod mixing;
mod opset;
pub mod proto;
mod quantize;
mod steps;
mod take;

pub use articulation::{Articulations, articulations};
pub use batch::{Extents, fix_shapes, shape_reads};
pub use build::{Attribute, GraphBuilder};
pub use cut::{CutPoint, cut};
pub use error::OnnxError;
pub use expand::{dequantize_blocks, expand_blocks};
pub use external::read_model;
pub use join::{embed_weights, join, rename_tensor};
pub use links::follow_links;
pub use mixing::{check_operators, check_repeatable, check_rows, dependent_nodes};
pub use quantize::quantize_weights;
pub(crate) use steps::finish_step;
pub use take::take_rows;
