//! Tokenizers of SentencePiece's vocabularies in GGUF files (`tokenizer.ggml.model` is `llama`).
//!
//! Characters are joined into the token with the highest score first (Kudo and Richardson 2018).
//! The library joins pairs in a fixed order: those of a token with a higher score stand before
//! others. A character that is not a token becomes its bytes.

use tokenizers::{
    NormalizerWrapper, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{Prepend, Replace, Sequence},
};

use super::build::add_tokens;
use crate::input::vocabulary::{TokenKind, VocabularyError, VocabularySpec};

/// Character that stands for a space.
const SPACE: &str = "\u{2581}";

/// Most bytes of a token. All places at which a token can be split are looked at.
const MAX_BYTES: usize = 512;

/// Most bytes of all pairs that make tokens, per byte of the tokens; real vocabularies have about
/// two. Some bytes are always granted.
const PAIRS_PER_BYTE: usize = 16;
const GRANTED: usize = 1 << 20;

/// Returns the tokenizer of the vocabulary `spec`.
pub(super) fn sentence_pieces(spec: &VocabularySpec) -> Result<Tokenizer, VocabularyError> {
    let refuse = |key, reason: String| Err(VocabularyError::key(key, reason));
    if spec.scores.iter().any(|score| !score.is_finite()) {
        return refuse("tokenizer.ggml.scores", "a score is not a number".into());
    }
    if spec.scores.is_empty() {
        return refuse("tokenizer.ggml.scores", "missing".into());
    }
    if let Some(id) = spec.tokens.iter().position(|token| token.len() > MAX_BYTES) {
        let reason = format!("token {id} has over {MAX_BYTES} bytes");
        return refuse("tokenizer.ggml.tokens", reason);
    }
    let vocabulary: Vocab = spec.tokens.iter().cloned().zip(0..).collect();
    let merges = merges(spec, &vocabulary)?;
    let builder = BPE::builder().vocab_and_merges(vocabulary, merges);
    let mut builder = builder.byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = spec.unknown_id {
        builder = builder.unk_token(spec.tokens[unknown as usize].clone());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(VocabularyError::Tokenizer)?);
    let spaces = spaces(spec)?;
    tokenizer.with_normalizer(Some(spaces)).map_err(VocabularyError::Tokenizer)?;
    add_tokens(&mut tokenizer, spec)?;
    Ok(tokenizer)
}

/// Returns the step that writes spaces as tokens have them.
fn spaces(spec: &VocabularySpec) -> Result<NormalizerWrapper, VocabularyError> {
    let replace = Replace::new(" ", SPACE).map_err(VocabularyError::Tokenizer)?;
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if spec.add_space_prefix.unwrap_or(true) {
        steps.push(Prepend::new(SPACE.to_owned()).into());
    }
    steps.push(replace.into());
    Ok(Sequence::new(steps).into())
}

/// Returns the pairs that make a token of a text, those of the token with the highest score first.
///
/// # Errors
///
/// Fails where tokens can be split in so many ways that few bytes of a file would take gigabytes.
fn merges(spec: &VocabularySpec, vocabulary: &Vocab) -> Result<Merges, VocabularyError> {
    let most = spec.tokens.iter().map(String::len).sum::<usize>().saturating_mul(PAIRS_PER_BYTE);
    let mut left = most.max(GRANTED);
    let is_text = |id: &usize| matches!(spec.kind(*id), TokenKind::Normal | TokenKind::UserDefined);
    let mut made: Vec<usize> = (0..spec.tokens.len()).filter(is_text).collect();
    made.sort_by(|one, other| spec.scores[*other].total_cmp(&spec.scores[*one]));
    let mut merges = Merges::new();
    for id in made {
        let token = spec.tokens[id].as_str();
        let borders = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = |(left, right): (&str, &str)| {
            let ids = [*vocabulary.get(left)?, *vocabulary.get(right)?];
            Some((ids, (left.to_owned(), right.to_owned())))
        };
        let mut pairs: Vec<_> = borders.filter_map(known).collect();
        pairs.sort_by_key(|(ids, _)| *ids);
        left = left.checked_sub(pairs.len() * token.len()).ok_or_else(|| {
            let reason = "there are too many ways to join tokens to others".to_owned();
            VocabularyError::key("tokenizer.ggml.tokens", reason)
        })?;
        merges.extend(pairs.into_iter().map(|(_, pair)| pair));
    }
    Ok(merges)
}
