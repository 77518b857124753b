//! Building modules from checkpoints: one file per architecture, and the family that they form.
//!
//! This module reads configurations and file headers, never the weights themselves. It knows no
//! budgets and runs no networks. [`Family::load`] is the entry point.

mod bert;
mod block;
mod builder;
mod checkpoint;
mod compute;
mod convolved;
mod decoder;
mod decoder_attention;
mod decoder_config;
mod decoder_experts;
mod departure;
mod encoder;
mod error;
mod experts;
mod exported;
mod family;
mod fit_records;
mod fitted;
#[cfg(test)]
mod fuzz_tests;
mod input;
mod map;
mod module_error;
mod moduleformer;
mod mpnet;
mod network;
mod open;
mod ops;
mod picture;
mod pool_error;
mod pooling;
mod promises;
mod relative;
mod routed;
mod stamps;
mod tokenize;
mod tokens;
mod trained;
mod vit;
mod vit_layout;

pub use checkpoint::{Checkpoint, TensorPlace};
pub use compute::Compute;
pub use error::ArchError;
pub use experts::{SplitPart, split_file_name};
pub use family::Family;
pub use fit_records::{FitRecord, FitRecords, FittedFile, SplitRecord};
pub use input::{ModelInput, Pixels};
pub use module_error::ModuleError;
pub use network::{ATTENTION_MASK, Company, INPUT_IDS, Network, PIXEL_VALUES, Precision};
pub use picture::{PictureError, decode_picture, decoding_bytes, raw_picture};
pub use pool_error::{PoolError, chain};
pub use routed::{
    KEYS, Order, QUERIES, REST, Routed, Router, SCORES, SUM, TOKENS, VALUES, Ways, Weighting,
};
pub use stamps::Stamps;
pub use tokenize::{TokenizeError, Tokenizer};
pub use tokens::Encoding;
