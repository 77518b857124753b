//! Texts to token ids.

use std::path::Path;

use super::{ArchError, checkpoint::open_verified};

/// A tokenizer read from `tokenizer.json`.
#[derive(Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    pad_id: i64,
}

/// Texts as padded token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The number of texts.
    pub batch: usize,
    /// The number of tokens of the longest text, padding's width.
    pub tokens: usize,
    /// `[batch, tokens]` token ids.
    pub input_ids: Vec<i64>,
    /// `[batch, tokens]`, 1 for a token and 0 for padding.
    pub attention_mask: Vec<i64>,
}

impl Tokenizer {
    /// Opens `folder/location`, checking its digest; texts will be cut after `max_tokens` tokens.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read, has another digest or is no tokenizer.
    pub fn open(
        folder: &Path,
        location: &Path,
        sha256: &str,
        max_tokens: usize,
    ) -> Result<Self, ArchError> {
        let file = open_verified(folder, location, sha256)?;
        let malformed = |e: tokenizers::Error| ArchError::Malformed {
            path: file.path().to_owned(),
            message: e.to_string(),
        };
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(file.bytes()).map_err(malformed)?;
        let pad_id = tokenizer.get_padding().map_or(0, |padding| i64::from(padding.pad_id));
        tokenizer.with_padding(None);
        let truncation =
            tokenizers::TruncationParams { max_length: max_tokens, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(malformed)?;
        Ok(Self { tokenizer, pad_id })
    }

    /// Encodes `texts`, padding all to the longest.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does; the text says why.
    pub fn encode(&self, texts: &[&str]) -> Result<Encoding, String> {
        let encodings: Vec<tokenizers::Encoding> = texts
            .iter()
            .map(|text| self.tokenizer.encode_fast(*text, true))
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())?;
        let tokens = encodings.iter().map(tokenizers::Encoding::len).max().unwrap_or(0);
        let mut input_ids = Vec::with_capacity(texts.len() * tokens);
        let mut attention_mask = Vec::with_capacity(texts.len() * tokens);
        for encoding in &encodings {
            let padding = tokens - encoding.len();
            input_ids.extend(encoding.get_ids().iter().map(|id| i64::from(*id)));
            input_ids.extend(std::iter::repeat_n(self.pad_id, padding));
            attention_mask.extend(std::iter::repeat_n(1, encoding.len()));
            attention_mask.extend(std::iter::repeat_n(0, padding));
        }
        Ok(Encoding { batch: texts.len(), tokens, input_ids, attention_mask })
    }
}
