//! Texts to token ids and back, for models that generate.
//!
//! Special tokens are read only where the caller says so: a user who writes `<|im_end|>` sends
//! text. Start at [`TextCoder`].

mod build;
mod json;
mod pieces;
mod sentence;
mod special;

use std::ops::Range;

use tokenizers::Tokenizer;

use self::{
    build::SENTENCE_PIECE,
    pieces::{Pieces, from_byte_characters, from_sentence_piece},
    special::{Fragment, SpecialToken, SpecialTokens},
};
use super::{
    tokenizer::TokenizeError,
    vocabulary::{TokenKind, VocabularyError, VocabularySpec},
};

/// Tokens that end a turn or a text, whatever else a vocabulary names as its end.
const ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
];

/// Meaning of special tokens that stand in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialText {
    /// They are special tokens.
    Tokens,
    /// They are text like any other.
    Text,
}

/// Tokenizer of a model that generates: ids of texts, and bytes of ids.
#[derive(Debug)]
pub struct TextCoder {
    /// Tokenizer to which special tokens are text.
    tokenizer: Tokenizer,
    /// Tokenizer of text behind other text, if it differs from `tokenizer`.
    continued: Option<Tokenizer>,
    pieces: Pieces,
    specials: SpecialTokens,
    /// Ids before each text.
    start: Vec<u32>,
    /// Whether a chat begins with `start` if its template does not write it.
    starts_chats: bool,
    /// Ids that end an answer, in rising order.
    ends: Vec<u32>,
}

impl TextCoder {
    /// Creates the tokenizer of the vocabulary of a GGUF file.
    ///
    /// # Errors
    ///
    /// Fails with the name of a key that is not supported or does not fit the others.
    pub fn from_vocabulary(spec: &VocabularySpec) -> Result<Self, VocabularyError> {
        spec.check()?;
        let (tokenizer, piece): (_, fn(&str) -> Vec<u8>) = match spec.model.as_str() {
            "gpt2" => (build::byte_level(spec)?, from_byte_characters),
            SENTENCE_PIECE => (sentence::sentence_pieces(spec)?, from_sentence_piece),
            other => return Err(VocabularyError::Model { model: other.to_owned() }),
        };
        let mut pieces = Pieces::default();
        let (mut specials, mut ends) = (Vec::new(), vec![]);
        for ((id, token), number) in spec.tokens.iter().enumerate().zip(0..) {
            match spec.kind(id) {
                TokenKind::Normal | TokenKind::Byte => pieces.push(&piece(token)),
                _ => pieces.push(token.as_bytes()),
            }
            if matches!(spec.kind(id), TokenKind::Control | TokenKind::Unknown) {
                specials.push(SpecialToken {
                    id: number,
                    text: token.clone(),
                    strips_left: false,
                    strips_right: false,
                });
                if ENDS.contains(&token.as_str()) {
                    ends.push(number);
                }
            }
        }
        ends.extend([spec.eos_id, spec.eot_id].into_iter().flatten());
        let is_started = spec.add_bos.unwrap_or_else(|| build::starts_texts(spec));
        let start: Vec<u32> = spec.bos_id.filter(|_| is_started).into_iter().collect();
        let specials = special_tokens(specials)?;
        let coder = Self {
            tokenizer,
            continued: None,
            pieces,
            specials,
            start,
            starts_chats: true,
            ends: Vec::new(),
        };
        Ok(coder.with_ends(&ends))
    }

    /// Returns the tokenizer with `ids` as the tokens that end an answer.
    #[must_use]
    pub fn with_ends(mut self, ids: &[u32]) -> Self {
        self.ends = ids.to_vec();
        self.ends.sort_unstable();
        self.ends.dedup();
        self
    }

    /// Returns the ids of `text`, without start tokens.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode(&self, text: &str, special: SpecialText) -> Result<Vec<u32>, TokenizeError> {
        match special {
            SpecialText::Tokens => self.encode_guarded(text, &[]),
            SpecialText::Text => {
                let mut ids = Vec::new();
                self.encode_fragment(text, &mut ids)?;
                Ok(ids)
            }
        }
    }

    /// Returns the ids of a prompt that is completed: start tokens, then the text, in which special
    /// tokens are read.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        Ok(self.started(self.encode_guarded(text, &[])?))
    }

    /// Returns the ids of a rendered chat. No special token leads over one of the byte offsets
    /// `guards`, which rise and lie at borders of characters.
    ///
    /// # Errors
    ///
    /// Fails where the tokenizer does.
    pub fn encode_chat(&self, text: &str, guards: &[usize]) -> Result<Vec<u32>, TokenizeError> {
        let ids = self.encode_guarded(text, guards)?;
        Ok(if self.starts_chats { self.started(ids) } else { ids })
    }

    /// Returns `ids` behind the start tokens, if they do not begin with them.
    fn started(&self, ids: Vec<u32>) -> Vec<u32> {
        match ids.starts_with(&self.start) {
            true => ids,
            false => [self.start.as_slice(), &ids].concat(),
        }
    }

    fn encode_guarded(&self, text: &str, guards: &[usize]) -> Result<Vec<u32>, TokenizeError> {
        let mut ids = Vec::new();
        for fragment in self.specials.split(text, guards) {
            match fragment {
                Fragment::Special(id) => ids.push(id),
                Fragment::Text(text) => self.encode_fragment(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Adds the ids of `text` without special tokens.
    fn encode_fragment(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let continued = self.continued.as_ref().filter(|_| !ids.is_empty());
        let tokenizer = continued.unwrap_or(&self.tokenizer);
        ids.extend_from_slice(tokenizer.encode_fast(text, false)?.get_ids());
        Ok(())
    }

    /// Returns the bytes that the token `id` stands for; none for an unknown one.
    ///
    /// The bytes of a special token are its name.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.of(id)
    }

    /// Returns the text of `ids`; what is not UTF-8 is replaced. Special tokens are written by name
    /// or left out.
    pub fn decode(&self, ids: &[u32], special: SpecialText) -> String {
        let shown = |id: &&u32| special == SpecialText::Text || !self.is_special(**id);
        let bytes: Vec<u8> =
            ids.iter().filter(shown).flat_map(|id| self.bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns whether the token `id` is special: it is not part of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.contains(id)
    }

    /// Returns the texts of the special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.specials.texts()
    }

    /// Returns the id of the token that is written `token` as a whole, or None.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Returns the ids that end an answer, in rising order.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the ids before each text.
    pub fn start(&self) -> &[u32] {
        &self.start
    }

    /// Returns the number of token ids.
    pub fn vocabulary_size(&self) -> usize {
        self.pieces.len()
    }

    /// Returns the ids of the vocabulary.
    pub fn ids(&self) -> Range<u32> {
        0..u32::try_from(self.pieces.len()).unwrap_or(u32::MAX)
    }

    /// Returns the number of bytes over which a text has more than `tokens` tokens.
    pub fn max_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.pieces.longest())
    }
}

fn special_tokens(tokens: Vec<SpecialToken>) -> Result<SpecialTokens, VocabularyError> {
    SpecialTokens::new(tokens).map_err(|error| VocabularyError::Tokenizer(error.into()))
}

#[cfg(test)]
#[path = "coder_tests.rs"]
mod tests;
