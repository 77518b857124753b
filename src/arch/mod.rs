//! Turns checkpoints into modules: one file per architecture, and the family they make.
//!
//! Reads configurations and file headers, never the weights themselves, which stay in their files.
//! It knows no budgets and runs nothing. Start at [`Family::load`].

mod bert;
mod checkpoint;
mod encoder;
mod error;
mod exported;
mod family;
mod fitted;
mod mpnet;
mod network;
mod pooling;
mod relative;
mod tokenize;

pub use checkpoint::{Checkpoint, TensorPlace};
pub use error::ArchError;
pub use family::Family;
pub use fitted::{FitRecord, FitRecords, fit_file_name};
pub use network::{ATTENTION_MASK, INPUT_IDS, Network, Precision};
pub use tokenize::{Encoding, Tokenizer};
