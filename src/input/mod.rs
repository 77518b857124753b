//! Inputs of requests: texts as tokens, and images as pixels; one file per modality.
//!
//! Knows no family's graph. Start at [`ModelInput`].

mod batch;
#[cfg(test)]
mod fuzz_tests;
mod picture;
mod prompts;
mod tokenizer;
mod tokens;

pub use batch::{ModelInput, Pixels};
pub use picture::{PictureError, decode_picture, decoding_bytes, raw_picture};
pub use prompts::Prompts;
pub use tokenizer::{TokenizeError, Tokenizer};
pub use tokens::Encoding;
