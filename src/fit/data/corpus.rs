//! Texts for fitting and evaluation.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    fit::error::FitError,
    input::Tokenizer,
    tensor::{FileKind, hex, json, read_text},
};

/// Named text.
#[derive(Debug, Clone, Deserialize)]
pub struct Text {
    /// Name of the text.
    pub id: String,
    /// Content of the text.
    pub text: String,
    /// Class of the text, if it has one.
    pub label: Option<String>,
    /// Name of the text that answers this one, if it is a question.
    pub answer: Option<String>,
}

impl Text {
    /// Returns a digest of the text's words, by which the same text is known in another file.
    pub fn digest(&self) -> u64 {
        let mut hash = Sha256::new();
        for word in self.text.split_whitespace() {
            hash.update(word.to_lowercase());
            hash.update(" ");
        }
        hash.finalize().iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }
}

/// Texts from a JSON Lines file of `{"id": …, "text": …}`, perhaps with `label` and `answer`.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// Names of the files, without their folders.
    names: Vec<String>,
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
                json::parse(line).map_err(|e| FitError::Malformed {
                    path: path.to_owned(),
                    message: format!("line {}: {e}", number + 1),
                })
            })
            .collect::<Result<_, _>>()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { names: vec![name], texts })
    }

    /// Returns the file's name without its folder; several are divided by commas.
    pub fn name(&self) -> String {
        self.names.join(", ")
    }

    /// Returns these texts and those of `other`.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.names.extend(other.names);
        self.texts.extend(other.texts);
        self
    }

    /// Returns the SHA-256 of all texts, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for Text { id, text, label, answer } in &self.texts {
            for part in [Some(id), Some(text), label.as_ref(), answer.as_ref()] {
                hash.update(part.map_or(&[][..], String::as_bytes));
                hash.update([0xff]);
            }
        }
        hex(&hash.finalize())
    }

    /// Creates a corpus of `texts`, as if they were read from the file called `name`.
    #[cfg(test)]
    pub(in crate::fit) fn of(name: &str, texts: Vec<Text>) -> Self {
        Self { names: vec![name.to_owned()], texts }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_means_two_things_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("texts.jsonl");
        let good = r#"{"id": "1", "text": "a"}"#;
        for (bad, reason) in
            [(r#"{"id": "2", "text": "b", "text": "c"}"#, "`text`"), (r#"["2", "b"]"#, "line 3")]
        {
            std::fs::write(&path, format!("{good}\n\n{bad}\n")).expect("written");
            let error = Corpus::read(&path, None).expect_err("two texts, or no object").to_string();
            assert!(error.contains("line 3") && error.contains(reason), "{error}");
            assert_eq!(Corpus::read(&path, Some(1)).expect("one text").texts().len(), 1);
        }
    }
}
