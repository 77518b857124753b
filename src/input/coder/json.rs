//! Tokenizers of generating models, read from `tokenizer.json`.

use serde_json::Value;
use tokenizers::{
    PreTokenizerWrapper, Tokenizer,
    pre_tokenizers::metaspace::{Metaspace, PrependScheme},
};

use super::{
    ENDS, TextCoder,
    pieces::{Pieces, from_byte_characters, from_sentence_piece},
    special::SpecialToken,
    special_tokens,
};
use crate::input::{tokenizer::read_json, vocabulary::VocabularyError};

/// Text whose ids show what a tokenizer puts around texts.
const PROBE: &str = "a";

impl TextCoder {
    /// Reads `json`, the content of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Fails when `json` is not a tokenizer, or its tokens do not stand for bytes.
    pub fn from_json(json: &[u8]) -> Result<Self, VocabularyError> {
        let mut tokenizer = read_json(json).map_err(VocabularyError::Tokenizer)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(VocabularyError::Tokenizer)?;
        let start = start(&tokenizer).map_err(VocabularyError::Tokenizer)?;
        tokenizer.set_encode_special_tokens(true);
        let mut specials = Vec::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.special {
                specials.push(SpecialToken {
                    id,
                    text: token.content,
                    strips_left: token.lstrip,
                    strips_right: token.rstrip,
                });
            }
        }
        specials.sort_by_key(|token| token.id);
        let is_end = |token: &&SpecialToken| ENDS.contains(&token.text.as_str());
        let ends: Vec<u32> = specials.iter().filter(is_end).map(|token| token.id).collect();
        let coder = Self {
            pieces: pieces(&tokenizer)?,
            continued: continued(&tokenizer),
            tokenizer,
            specials: special_tokens(specials)?,
            start,
            starts_chats: false,
            ends: Vec::new(),
        };
        Ok(coder.with_ends(&ends))
    }
}

/// Returns the ids that `tokenizer` puts before each text.
fn start(tokenizer: &Tokenizer) -> Result<Vec<u32>, tokenizers::Error> {
    let plain = tokenizer.encode_fast(PROBE, false)?;
    let full = tokenizer.encode_fast(PROBE, true)?;
    let plain = plain.get_ids();
    let place = full.get_ids().windows(plain.len().max(1)).position(|ids| ids == plain);
    Ok(full.get_ids()[..place.unwrap_or(0)].to_vec())
}

/// Returns the bytes of the tokens of `tokenizer`, as its decoder makes them.
fn pieces(tokenizer: &Tokenizer) -> Result<Pieces, VocabularyError> {
    let decoder = tokenizer.get_decoder().and_then(|own| serde_json::to_value(own).ok());
    let decoder = decoder.unwrap_or(Value::Null);
    let bytes = if has_type(&decoder, "ByteLevel") {
        from_byte_characters
    } else if has_type(&decoder, "ByteFallback") || has_type(&decoder, "Metaspace") {
        from_sentence_piece
    } else {
        let reason = "its decoder is neither `ByteLevel`, `ByteFallback` nor `Metaspace`; texts \
                      cannot be put together of its tokens"
            .to_owned();
        return Err(VocabularyError::Json { reason });
    };
    let added = tokenizer.get_added_tokens_decoder();
    let vocabulary = tokenizer.get_vocab(true);
    let num_ids = vocabulary.values().max().map_or(0, |last| last.saturating_add(1));
    if num_ids as usize > vocabulary.len().saturating_mul(2) {
        let reason = format!("ids go up to {num_ids}, for {} tokens", vocabulary.len());
        return Err(VocabularyError::Json { reason });
    }
    let mut pieces = Pieces::default();
    for id in 0..num_ids {
        match (added.get(&id), tokenizer.id_to_token(id)) {
            (Some(token), _) => pieces.push(token.content.as_bytes()),
            (None, Some(piece)) => pieces.push(&bytes(&piece)),
            (None, None) => pieces.push(&[]),
        }
    }
    Ok(pieces)
}

/// Returns whether `decoder` or a part of it has the type `name`.
fn has_type(decoder: &Value, name: &str) -> bool {
    let parts = decoder.get("decoders").and_then(Value::as_array);
    decoder.get("type").and_then(Value::as_str) == Some(name)
        || parts.is_some_and(|parts| parts.iter().any(|part| has_type(part, name)))
}

/// Returns the tokenizer of text behind a special token, if only the first word of a text is
/// given a space before it.
fn continued(tokenizer: &Tokenizer) -> Option<Tokenizer> {
    let Some(PreTokenizerWrapper::Metaspace(own)) = tokenizer.get_pre_tokenizer() else {
        return None;
    };
    if own.prepend_scheme != PrependScheme::First {
        return None;
    }
    let step = Metaspace::new(own.get_replacement(), PrependScheme::Never, own.get_split());
    let mut continued = tokenizer.clone();
    continued.with_pre_tokenizer(Some(step));
    Some(continued)
}
