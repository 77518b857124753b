//! Tokenizers made from the keys of a GGUF file.

use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::input::vocabulary::{TokenKind, VocabularyError, VocabularySpec};

/// Splits of words as in Llama 3, with up to three digits together.
const LLAMA_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Splits of words as in Qwen 2, with single digits.
const QWEN_2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Ways of splitting texts into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splits {
    /// GPT-2's pattern.
    Gpt2,
    /// Digits one by one, then GPT-2's pattern.
    Digits,
    /// Qwen 2's pattern.
    Qwen2,
    /// Llama 3's pattern; words that are tokens are not put together.
    Llama3,
}

/// Value of `tokenizer.ggml.model` for SentencePiece's vocabularies.
pub(super) const SENTENCE_PIECE: &str = "llama";

/// Values of `tokenizer.ggml.pre`, and what they mean.
const PRE: [(&str, Splits); 10] = [
    ("gpt-2", Splits::Gpt2),
    ("phi-2", Splits::Gpt2),
    ("smollm", Splits::Digits),
    ("starcoder", Splits::Digits),
    ("qwen2", Splits::Qwen2),
    ("deepseek-r1-qwen", Splits::Qwen2),
    ("llama-bpe", Splits::Llama3),
    ("llama-v3", Splits::Llama3),
    ("llama3", Splits::Llama3),
    ("falcon3", Splits::Llama3),
];

impl Splits {
    /// Returns the way that `pre` names.
    fn of(pre: Option<&str>) -> Result<Self, VocabularyError> {
        let named = pre.and_then(|pre| PRE.iter().find(|known| known.0 == pre));
        named.map(|known| known.1).ok_or_else(|| {
            let names: Vec<String> = PRE.iter().map(|known| format!("`{}`", known.0)).collect();
            let pre = pre.map_or("missing".into(), |pre| format!("`{pre}`"));
            VocabularyError::Pre { pre, known: names.join(", ") }
        })
    }

    /// Returns the step of the library that splits so.
    fn step(self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        let pattern = match self {
            Self::Gpt2 => return Ok(ByteLevel::new(false, false, true).into()),
            Self::Digits => {
                let bytes = ByteLevel::new(false, false, true);
                return Ok(Sequence::new(vec![Digits::new(true).into(), bytes.into()]).into());
            }
            Self::Qwen2 => QWEN_2,
            Self::Llama3 => LLAMA_3,
        };
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        let bytes = ByteLevel::new(false, false, false);
        Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
    }
}

/// Returns whether texts start with the start token if `spec` does not say it: they do in Llama 3's
/// way, and in SentencePiece's vocabularies.
pub(super) fn starts_texts(spec: &VocabularySpec) -> bool {
    spec.model == SENTENCE_PIECE
        || Splits::of(spec.pre.as_deref()).is_ok_and(|splits| splits == Splits::Llama3)
}

/// Returns the tokenizer of a `gpt2` vocabulary: pairs of bytes joined by `spec.merges`.
pub(super) fn byte_level(spec: &VocabularySpec) -> Result<Tokenizer, VocabularyError> {
    let splits = Splits::of(spec.pre.as_deref())?;
    if spec.merges.is_empty() {
        return Err(VocabularyError::key("tokenizer.ggml.merges", "missing"));
    }
    let ids = 0..u32::try_from(spec.tokens.len()).unwrap_or(u32::MAX);
    let vocabulary: Vocab = spec.tokens.iter().cloned().zip(ids).collect();
    let builder = BPE::builder()
        .vocab_and_merges(vocabulary, merges(spec)?)
        .ignore_merges(splits == Splits::Llama3);
    let model = builder.build().map_err(VocabularyError::Tokenizer)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(splits.step().map_err(VocabularyError::Tokenizer)?));
    add_tokens(&mut tokenizer, spec)?;
    Ok(tokenizer)
}

/// Returns the pairs of `spec.merges`.
fn merges(spec: &VocabularySpec) -> Result<Merges, VocabularyError> {
    let pair = |merge: &String| {
        // A token may begin with a space, but none of the byte-level characters is one.
        let pair = merge.split_once(' ');
        pair.map(|(left, right)| (left.to_owned(), right.to_owned())).ok_or_else(|| {
            VocabularyError::key("tokenizer.ggml.merges", format!("{merge:?} is not a pair"))
        })
    };
    spec.merges.iter().map(pair).collect()
}

/// Adds the tokens that are found before a text is split. Special ones stay text: the finder of
/// special tokens has taken those that are not.
pub(super) fn add_tokens(
    tokenizer: &mut Tokenizer,
    spec: &VocabularySpec,
) -> Result<(), VocabularyError> {
    let is_added = |place: &(usize, &String)| spec.kind(place.0) == TokenKind::UserDefined;
    let added = spec.tokens.iter().enumerate().filter(is_added);
    let added = added.map(|(_, token)| AddedToken::from(token.clone(), false).normalized(false));
    tokenizer.add_tokens(added.collect::<Vec<_>>()).map_err(VocabularyError::Tokenizer)?;
    Ok(())
}
