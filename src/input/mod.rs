//! Inputs of requests: texts as tokens, and images as pixels; one file per modality.
//!
//! Knows no family's graph. Start at [`ModelInput`].

mod batch;
mod chat;
#[cfg(test)]
mod chat_fuzz_tests;
mod coder;
#[cfg(test)]
mod fuzz_tests;
mod language;
mod parts;
mod picture;
mod prompts;
mod stream;
mod tokenizer;
mod tokens;
mod vocabulary;

pub use batch::{ModelInput, Pixels};
pub use chat::{Chat, ChatPrompt, ChatTemplate, ChatTemplateError};
pub use coder::{SpecialText, TextCoder};
pub use language::Language;
pub use parts::{AnswerParts, CallFormat, MARKS, Part, PartsSpec, THOUGHT_END};
pub use picture::{PictureError, decode_picture, decoding_bytes, raw_picture};
pub use prompts::Prompts;
pub use stream::{Added, AnswerText, StopError, StopStrings};
pub use tokenizer::{TokenizeError, Tokenizer};
pub use tokens::Encoding;
pub use vocabulary::{TokenKind, VocabularyError, VocabularySpec};
