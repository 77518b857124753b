//! Building modules from checkpoints: one file per architecture, and the family that they form.
//!
//! This module reads configurations and file headers, never the weights themselves. It knows no
//! budgets and runs no networks. [`Family::load`] is the entry point.

mod anchor;
mod bert;
mod builder;
mod checkpoint;
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
mod moduleformer;
mod mpnet;
mod network;
mod picture;
mod pooling;
mod promises;
mod relative;
mod routed;
mod stamps;
mod tokenize;
mod trained;
mod vit;
mod vit_layout;

pub use checkpoint::{Checkpoint, TensorPlace};
pub use error::ArchError;
pub use experts::{SplitPart, split_file_name};
pub use family::{Compute, Family};
pub use fit_records::{
    FITS_FOLDER, FitRecord, FitRecords, FittedFile, SplitRecord, fit_file_name, name_with_digest,
    name_without_digest,
};
pub use input::{ModelInput, Pixels};
pub use network::{ATTENTION_MASK, Company, INPUT_IDS, Network, PIXEL_VALUES, Precision};
pub use picture::{PictureError, decode_picture, decoding_bytes, raw_picture};
pub use routed::{
    KEYS, Order, QUERIES, REST, Routed, Router, SCORES, SUM, TOKENS, VALUES, Ways, Weighting,
};
pub use stamps::Stamps;
pub use tokenize::{Encoding, Tokenizer};
