//! Long texts are tokenized in part, with the tokens of the whole.

use tessera::family::Manifest;
use tokenizers::{Tokenizer, TruncationParams};

use crate::support::{root, text_family};

/// Returns words and marks of several scripts in an order without a pattern.
fn mixed(num_words: usize) -> String {
    const WORDS: [&str; 12] = [
        "server",
        "naïve",
        "ΑΣ",
        "日本語",
        "don't",
        "e\u{301}t\u{e9}",
        "[MASK]",
        "a\u{ad}b",
        "…",
        "x\u{c}y",
        "ﬁne",
        "🙂",
    ];
    const GAPS: [&str; 5] = [" ", "\n", "\t", "\u{a0}", "  "];
    let word = |at: usize| [WORDS[at * at % 97 % 12], GAPS[at * 7 % 31 % 5]].concat();
    (0..num_words).map(word).collect()
}

#[test]
fn a_long_text_has_the_tokens_of_the_whole() {
    let family = text_family();
    let Manifest { reference, limits, .. } = &family.manifest;
    let ours = family.tokenizer(reference).expect("a tokenizer");
    assert!(ours.bytes_read().is_some(), "this is BERT's tokenizer");
    let file = root().join("models/text/anchors/l6/tokenizer.json");
    let mut whole = Tokenizer::from_file(file).expect("a tokenizer");
    let max_length = limits.max_tokens;
    whole.with_padding(None);
    whole
        .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
        .expect("a length");
    for text in [
        mixed(20_000),
        "w".repeat(100_000),
        "日".repeat(20_000),
        format!("{} at the end", "w".repeat(100_000)),
        format!("at the start {} at the end", "w".repeat(100_000)),
        " \n".repeat(50_000) + "at the end",
        "antidisestablishmentarianism ".repeat(5_000),
    ] {
        let expected = whole.encode_fast(text.as_str(), true).expect("encoded");
        let expected: Vec<i64> = expected.get_ids().iter().map(|id| i64::from(*id)).collect();
        let start: String = text.chars().take(30).collect();
        assert_eq!(ours.encode_one(&text).expect("encoded"), expected, "{start:?}…");
    }
}
