//! Texts of a model that generates: their tokens, and chats as texts.

use super::{chat::ChatTemplate, coder::TextCoder};

/// Tokenizer of a model that generates, and its template of chats.
#[derive(Debug)]
pub struct Language {
    /// Tokenizer of prompts and answers.
    pub coder: TextCoder,
    /// Template of chats; `None` for a model that was not trained on any.
    pub template: Option<ChatTemplate>,
}
