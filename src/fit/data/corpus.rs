//! Texts for fitting and evaluation.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{
    fit::error::FitError,
    input::Tokenizer,
    tensor::{FileKind, read_text},
};

/// Named text.
#[derive(Debug, Clone, Deserialize)]
pub struct Text {
    /// Name of the text.
    pub id: String,
    /// Content of the text.
    pub text: String,
}

/// Texts from a JSON Lines file of `{"id": …, "text": …}`.
#[derive(Debug, Clone)]
pub struct Corpus {
    path: PathBuf,
    texts: Vec<Text>,
}

impl Corpus {
    /// Reads at most `limit` texts of the file at `path`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or a line does not parse; the error names the line.
    pub fn read(path: &Path, limit: Option<usize>) -> Result<Self, FitError> {
        let content = read_text(path, FileKind::Examples)
            .map_err(|reason| FitError::File { path: path.to_owned(), reason })?;
        let texts = content
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .take(limit.unwrap_or(usize::MAX))
            .map(|(number, line)| {
                serde_json::from_str(line).map_err(|e| FitError::Malformed {
                    path: path.to_owned(),
                    message: format!("line {}: {e}", number + 1),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), texts })
    }

    /// Returns the file's name without its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the texts.
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// Returns the number of tokens of each text, at most `max_tokens`.
    ///
    /// # Errors
    ///
    /// Fails when the tokenizer fails.
    pub fn lengths(
        &self,
        tokenizer: &Tokenizer,
        max_tokens: usize,
    ) -> Result<Vec<usize>, FitError> {
        let length = |text: &Text| {
            let encoding = tokenizer.encode_up_to(&[&text.text], max_tokens);
            encoding
                .map(|encoding| encoding.tokens)
                .map_err(|error| FitError::Tokenize(error.to_string()))
        };
        self.texts.iter().map(length).collect()
    }
}
