//! Converting texts to token ids.

use super::tokens::Encoding;

/// Error of a tokenizer, in its own words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TokenizeError(#[from] tokenizers::Error);

/// Tokenizer read from `tokenizer.json`.
#[derive(Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    pad_id: i64,
    /// Text before each text; empty for none.
    prompt: String,
}

impl Tokenizer {
    /// Reads `json`, the content of a `tokenizer.json`. Texts are cut after `max_tokens` tokens.
    ///
    /// # Errors
    ///
    /// Fails when `json` is not a tokenizer.
    pub fn from_bytes(json: &[u8], max_tokens: usize) -> Result<Self, TokenizeError> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
        let pad_id = tokenizer.get_padding().map_or(0, |padding| i64::from(padding.pad_id));
        tokenizer.with_padding(None);
        let direction = tokenizer.get_truncation().map(|own| own.direction).unwrap_or_default();
        let truncation = tokenizers::TruncationParams {
            max_length: max_tokens,
            direction,
            ..Default::default()
        };
        tokenizer.with_truncation(Some(truncation))?;
        Ok(Self { tokenizer, pad_id, prompt: String::new() })
    }

    /// Returns the tokenizer with `prompt` before each text.
    #[must_use]
    pub fn with_prompt(self, prompt: Option<String>) -> Self {
        Self { prompt: prompt.unwrap_or_default(), ..self }
    }

    /// Returns the text before each text; empty for none.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// Encodes `texts`, padding all to the longest.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode(&self, texts: &[&str]) -> Result<Encoding, TokenizeError> {
        self.encode_up_to(texts, usize::MAX)
    }

    /// Encodes `texts` like [`encode`](Self::encode), but cuts them after `max_tokens` tokens if
    /// that is sooner. The last token, which ends a text, is kept.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode_up_to(
        &self,
        texts: &[&str],
        max_tokens: usize,
    ) -> Result<Encoding, TokenizeError> {
        let encodings: Vec<tokenizers::Encoding> = texts
            .iter()
            .map(|text| match self.prompt.is_empty() {
                true => self.tokenizer.encode_fast(*text, true),
                false => self.tokenizer.encode_fast(format!("{}{text}", self.prompt), true),
            })
            .collect::<Result<_, _>>()?;
        let rows: Vec<Vec<i64>> = encodings
            .iter()
            .map(|encoding| {
                let ids = encoding.get_ids();
                let kept = ids.len().min(max_tokens);
                let cut = kept < ids.len();
                let last = ids.last().filter(|_| cut);
                let first = ids[..kept - usize::from(cut)].iter();
                first.chain(last).map(|id| i64::from(*id)).collect()
            })
            .collect();
        Ok(Encoding::pad(&rows, self.pad_id))
    }

    /// Returns the number of token ids that the tokenizer can make.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}
