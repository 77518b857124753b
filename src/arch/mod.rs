//! Building modules from checkpoints: a folder per kind of network, a file per architecture.
//!
//! This room reads configurations and file headers, never the weights themselves. It knows no
//! budgets and runs no networks. Start at `open::open`.

mod backbone;
mod decoder;
mod encoder;
mod error;
mod exported;
#[cfg(test)]
mod fuzz_tests;
mod gguf;
pub(crate) mod joint;
mod keys;
mod layout;
mod nonlinearity;
pub(crate) mod open;
mod ops;
mod vision;

pub(crate) use backbone::{Backbone, Expansion, Form};
pub use error::ArchError;
pub(crate) use joint::{MapParts, SplitFile};
pub use joint::{SplitPart, split_file_name};
#[cfg(test)]
pub(crate) use layout::Axes;
pub(crate) use layout::{Layout, PartId, PartSpec, Reads, Widest};
