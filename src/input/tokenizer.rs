//! Converting texts to token ids.

use std::{borrow::Cow, iter::successors, panic::catch_unwind};

use serde_json::Value;
use tokenizers::{NormalizerWrapper, PostProcessor, PreTokenizerWrapper, TruncationDirection};

use super::{prompts::Prompts, tokens::Encoding};
use crate::tensor::json;

/// Number of bytes per token in the first part of a text that is tokenized. Few texts have more.
const BYTES_PER_TOKEN: usize = 8;

/// Factor between the parts of a text that are tokenized.
const GROWTH: usize = 4;

/// Error of a tokenizer, in its own words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TokenizeError(#[from] tokenizers::Error);

/// Tokenizer read from `tokenizer.json`.
#[derive(Debug)]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    max_tokens: usize,
    /// Ends of words up to which a text has the tokens with which the whole text begins; None if
    /// there may be others.
    word_ends: Option<WordEnds>,
    pad_id: i64,
    prompts: Prompts,
}

impl Tokenizer {
    /// Reads `json`, the content of a `tokenizer.json`. Texts are cut after `max_tokens` tokens.
    ///
    /// # Errors
    ///
    /// Fails when `json` is not a tokenizer, and when it adds so many tokens to each text that none
    /// of the text would be left.
    pub fn from_bytes(json: &[u8], max_tokens: usize) -> Result<Self, TokenizeError> {
        let mut tokenizer = read_json(json)?;
        let num_added = tokenizer.get_post_processor().map_or(0, |own| own.added_tokens(false));
        if num_added >= max_tokens {
            let message = format!(
                "it adds {num_added} tokens to each text, but the manifest's `max_tokens` is \
                 {max_tokens}"
            );
            return Err(tokenizers::Error::from(message).into());
        }
        let pad_id = tokenizer.get_padding().map_or(0, |padding| i64::from(padding.pad_id));
        tokenizer.with_padding(None);
        let direction = tokenizer.get_truncation().map(|own| own.direction).unwrap_or_default();
        let truncation = tokenizers::TruncationParams {
            max_length: max_tokens,
            direction,
            ..Default::default()
        };
        tokenizer.with_truncation(Some(truncation))?;
        let word_ends = WordEnds::of(&tokenizer);
        Ok(Self { tokenizer, max_tokens, word_ends, pad_id, prompts: Prompts::default() })
    }

    /// Returns the tokenizer with `prompts`, of which the default stands before each text.
    #[must_use]
    pub fn with_prompts(self, prompts: Prompts) -> Self {
        Self { prompts, ..self }
    }

    /// Returns the texts that may stand before each text.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }

    /// Returns the number of bytes that are usually tokenized of a text, or None for all of it.
    pub fn bytes_read(&self) -> Option<usize> {
        self.word_ends.as_ref().map(|_| self.max_tokens.saturating_mul(BYTES_PER_TOKEN))
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
        let row = |text: &&str| {
            let mut ids = self.encode_one(text)?;
            if let Some(last) = ids.last().copied().filter(|_| max_tokens < ids.len()) {
                ids.truncate(max_tokens.saturating_sub(1));
                ids.push(last);
            }
            Ok::<_, TokenizeError>(ids)
        };
        let rows = texts.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        Ok(self.pad(&rows))
    }

    /// Returns the token ids of `text` behind the default prompt.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode_one(&self, text: &str) -> Result<Vec<i64>, TokenizeError> {
        self.encode_behind(&self.prompts.default, text)
    }

    /// Returns the token ids of `text` behind `prompt`.
    ///
    /// Of a long text, only a part is tokenized if that gives the same ids.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode_behind(&self, prompt: &str, text: &str) -> Result<Vec<i64>, TokenizeError> {
        let text = match prompt.is_empty() {
            true => Cow::Borrowed(text),
            false => Cow::Owned(format!("{prompt}{text}")),
        };
        let mut read = 0;
        for part in self.parts(&text) {
            if part.len() > read {
                read = part.len();
                let encoding = self.tokenizer.encode_fast(part, true)?;
                if encoding.len() >= self.max_tokens {
                    return Ok(ids(&encoding));
                }
            }
        }
        Ok(ids(&self.tokenizer.encode_fast(&*text, true)?))
    }

    /// Joins rows of token ids into one batch, padded to the longest.
    pub fn pad(&self, rows: &[Vec<i64>]) -> Encoding {
        Encoding::pad(rows, self.pad_id)
    }

    /// Returns parts of `text`, each longer than the one before, with whose tokens it begins.
    fn parts<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let lengths = successors(self.bytes_read(), |bytes| bytes.checked_mul(GROWTH));
        lengths
            .take_while(|bytes| *bytes <= text.len() / 2)
            .filter_map(|bytes| self.word_ends.as_ref()?.up_to_word_end(text, bytes))
    }

    /// Returns the number of token ids that the tokenizer can make.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

/// Reads `json`, the content of a `tokenizer.json`.
///
/// # Errors
///
/// Fails when `json` is not a tokenizer.
pub(super) fn read_json(json: &[u8]) -> Result<tokenizers::Tokenizer, tokenizers::Error> {
    // The library panics on some files that it cannot read, such as those that are cut off.
    json::check(str::from_utf8(json)?)?;
    let read = catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
    let tokenizer = read.unwrap_or_else(|_| Err("it is not a tokenizer".into()))?;
    if let Some(own) = tokenizer.get_post_processor() {
        check_template(&serde_json::to_value(own)?)?;
    }
    Ok(tokenizer)
}

/// Checks that the template of `processor`, or of each of its parts, can be applied to one text.
/// The library panics at the first text if it cannot.
fn check_template(processor: &Value) -> Result<(), String> {
    for part in processor["processors"].as_array().into_iter().flatten() {
        check_template(part)?;
    }
    for piece in processor["single"].as_array().into_iter().flatten() {
        if let Some(token) = piece["SpecialToken"]["id"].as_str()
            && processor["special_tokens"].get(token).is_none()
        {
            return Err(format!(
                "the template of its post-processor has the token `{token}`, which is not among \
                 its `special_tokens`"
            ));
        }
        if piece["Sequence"]["id"] == "B" {
            return Err("the template of its post-processor for one text names a second".into());
        }
    }
    Ok(())
}

fn ids(encoding: &tokenizers::Encoding) -> Vec<i64> {
    encoding.get_ids().iter().map(|id| i64::from(*id)).collect()
}

/// Ends of words of BERT's way to split texts.
///
/// Its normalizer changes characters regardless of those behind an end, and its pre-tokenizer
/// splits there. No added token may lead across one.
#[derive(Debug)]
struct WordEnds {
    /// ASCII characters that are words of their own and stand in no added token.
    marks: Vec<u8>,
    /// Whether each Chinese character is a word of its own.
    splits_chinese: bool,
}

impl WordEnds {
    /// Returns the ends of words of `tokenizer`, or None if it does not split as BERT does.
    fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let splits_chinese = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::BertNormalizer(own)) => own.handle_chinese_chars,
            Some(_) => return None,
        };
        let is_split =
            matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)));
        let keeps_start = tokenizer
            .get_truncation()
            .is_some_and(|truncation| truncation.direction == TruncationDirection::Right);
        let added = tokenizer.get_added_tokens_decoder();
        let in_added = added.values().flat_map(|token| token.content.bytes());
        let is_plain = in_added.clone().all(|byte| byte.is_ascii_graphic());
        let marks = (b'!'..=b'~').filter(u8::is_ascii_punctuation);
        let marks = marks.filter(|mark| in_added.clone().all(|byte| byte != *mark)).collect();
        (is_split && keeps_start && is_plain).then_some(Self { marks, splits_chinese })
    }

    /// Returns `text` up to the last end of a word within its first `bytes`, or None if there is
    /// none.
    fn up_to_word_end<'t>(&self, text: &'t str, bytes: usize) -> Option<&'t str> {
        let start = &text[..text.floor_char_boundary(bytes)];
        let mut places = start.char_indices().rev();
        places.find_map(|(place, character)| match character {
            // A form feed is not among them: BERT's normalizer drops it and joins the words
            // around it.
            ' ' | '\t' | '\n' | '\r' => Some(&text[..place]),
            '\u{4e00}'..='\u{9fff}' if self.splits_chinese => {
                Some(&text[..place + character.len_utf8()])
            }
            _ => {
                let mark = u8::try_from(character).ok().filter(|byte| self.marks.contains(byte));
                mark.map(|_| &text[..=place])
            }
        })
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
