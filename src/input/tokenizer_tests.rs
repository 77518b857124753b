//! Tests of tokenizing long texts in parts.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Pieces of texts: words, scripts, punctuation, marks, control characters and spaces.
const PIECES: [&str; 30] = [
    "a", "b", "ab", "abab", "zz", "á", "e\u{301}", "\u{301}", "ß", "Σ", "ΑΣ", "中", "国", "e", ".",
    "[", "]", "[MASK]", "MASK", "\u{ad}", "\u{0}", "\u{c}", "\u{85}", "\u{a0}", "\u{3000}", " ",
    " ", "\n", "\t", "\r",
];

/// Returns the `tokenizer.json` of a small BERT tokenizer.
fn bert() -> Value {
    let words =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "e", "中", ".", "["];
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": words[id], "single_word": false, "lstrip": id == 4,
               "rstrip": false, "normalized": false, "special": true})
    };
    let special = |id: usize| json!({"SpecialToken": {"id": words[id], "type_id": 0}});
    let named = |id: usize| json!({"id": words[id], "ids": [id], "tokens": [words[id]]});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2), added(3), added(4)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [special(2), {"Sequence": {"id": "A", "type_id": 0}}, special(3)],
            "pair": [special(2), {"Sequence": {"id": "A", "type_id": 0}}, special(3)],
            "special_tokens": {"[CLS]": named(2), "[SEP]": named(3)}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 20, "vocab": vocabulary},
    })
}

fn tokenizer(json: &Value, max_tokens: usize) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes(), max_tokens).expect("a tokenizer")
}

/// Returns the token ids of all of `text`.
fn of_whole(tokenizer: &Tokenizer, text: &str) -> Vec<i64> {
    ids(&tokenizer.tokenizer.encode_fast(text, true).expect("encoded"))
}

/// Returns the lengths of the parts of `text` that are tried before the whole.
fn lengths(tokenizer: &Tokenizer, text: &str) -> Vec<usize> {
    tokenizer.parts(text).map(str::len).collect()
}

#[test]
fn a_limit_without_room_for_a_token_of_the_text_is_refused() {
    for max_tokens in [0, 1, 2] {
        let read = Tokenizer::from_bytes(bert().to_string().as_bytes(), max_tokens);
        let error = read.expect_err("no room").to_string();
        assert!(error.starts_with("it adds 2 tokens to each text"), "{error}");
    }
    assert_eq!(tokenizer(&bert(), 3).encode_one("a b").expect("encoded").len(), 3);
}

#[test]
fn long_texts_have_the_tokens_of_the_whole() {
    let tokenizer = tokenizer(&bert(), 16);
    for text in [
        "ab ".repeat(10_000),
        "a".repeat(50_000),
        format!("{} ab", "a".repeat(50_000)),
        format!("{} ab", "中".repeat(500)),
        "../".repeat(10_000),
        "[MASK].".repeat(5_000),
        ".\u{301}".repeat(10_000),
        " ".repeat(50_000),
        format!("a{}b", " ".repeat(50_000)),
        format!("{}ab", "\u{ad} ".repeat(5_000)),
        "[MASK] ".repeat(5_000),
        "a\u{c}b ".repeat(5_000),
        "é e\u{301} ".repeat(5_000),
    ] {
        let start: String = text.chars().take(20).collect();
        let found = tokenizer.encode_one(&text).expect("encoded");
        assert_eq!(found, of_whole(&tokenizer, &text), "{start}…");
    }
}

#[test]
fn only_the_start_of_a_long_text_is_tokenized() {
    let tokenizer = tokenizer(&bert(), 16);
    let text = "ab ".repeat(1_000);
    assert_eq!(tokenizer.bytes_read(), Some(128));
    assert_eq!(lengths(&tokenizer, &text), [125, 509]);
    assert!(lengths(&tokenizer, &text[..255]).is_empty());
    let enough = tokenizer.tokenizer.encode_fast(&text[..125], true).expect("encoded");
    assert_eq!(enough.len(), 16, "the first part has enough");
}

#[test]
fn a_word_ends_at_marks_that_are_in_no_added_token() {
    let tokenizer = tokenizer(&bert(), 16);
    assert_eq!(lengths(&tokenizer, &"ab/".repeat(1_000)), [126, 510]);
    assert_eq!(lengths(&tokenizer, &"中".repeat(1_000)), [126, 510]);
    assert!(lengths(&tokenizer, &"ab]".repeat(1_000)).is_empty(), "`]` is in `[MASK]`");
    let mut json = bert();
    json["normalizer"]["handle_chinese_chars"] = json!(false);
    let tokenizer = self::tokenizer(&json, 16);
    assert!(lengths(&tokenizer, &"中".repeat(1_000)).is_empty());
}

#[test]
fn a_template_that_cannot_be_applied_is_refused() {
    for (at, value, message) in [
        ("/single/0/SpecialToken/id", json!("[BOS]"), "has the token `[BOS]`, which is not"),
        ("/special_tokens", json!({}), "has the token `[CLS]`, which is not"),
        ("/single/1/Sequence/id", json!("B"), "for one text names a second"),
    ] {
        for within in ["/post_processor", "/post_processor/processors/0"] {
            let mut json = bert();
            let single = json["post_processor"].take();
            json["post_processor"] = match within {
                "/post_processor" => single,
                _ => json!({"type": "Sequence", "processors": [single]}),
            };
            *json.pointer_mut(&format!("{within}{at}")).expect(at) = value.clone();
            let read = Tokenizer::from_bytes(json.to_string().as_bytes(), 16);
            let error = read.expect_err(message).to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}

#[test]
fn a_prompt_counts_as_the_start_of_a_text() {
    let named = [("short".to_owned(), "a: ".to_owned())].into();
    let prompts = Prompts { default: "b a b: ".to_owned(), named };
    let tokenizer = tokenizer(&bert(), 16).with_prompts(prompts);
    let text = "ab ".repeat(1_000);
    let whole = of_whole(&tokenizer, &format!("b a b: {text}"));
    assert_eq!(tokenizer.encode_one(&text).expect("encoded"), whole);
    let prompt = tokenizer.prompts().find(Some("short")).expect("a prompt");
    let whole = of_whole(&tokenizer, &format!("a: {text}"));
    assert_eq!(tokenizer.encode_behind(prompt, &text).expect("encoded"), whole);
    assert_eq!(tokenizer.prompts().find(Some("long")), None);
}

#[test]
fn other_tokenizers_read_the_whole_text() {
    let change = |at: &str, value: Value| {
        let mut json = bert();
        *json.pointer_mut(at).expect(at) = value;
        json
    };
    for (json, what) in [
        (change("/normalizer", json!({"type": "NFKC"})), "a normalizer of another kind"),
        (
            change(
                "/normalizer",
                json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            ),
            "",
        ),
        (
            change(
                "/pre_tokenizer",
                json!({"type": "Metaspace", "replacement": "▁",
            "prepend_scheme": "always", "split": true}),
            ),
            "words that begin with their space",
        ),
        (change("/pre_tokenizer", Value::Null), "no words"),
        (
            change(
                "/truncation",
                json!({"direction": "Left", "max_length": 16,
            "strategy": "LongestFirst", "stride": 0}),
            ),
            "the end is kept",
        ),
        (change("/added_tokens/4/content", json!("a b")), "a token with a space"),
        (change("/added_tokens/4/content", json!("中国")), "a token to which spaces are added"),
    ] {
        let tokenizer = tokenizer(&json, 16);
        let text = "ab ".repeat(1_000);
        assert_eq!(tokenizer.bytes_read(), None, "{what}");
        assert!(lengths(&tokenizer, &text).is_empty(), "{what}");
        assert_eq!(tokenizer.encode_one(&text).expect("encoded"), of_whole(&tokenizer, &text));
    }
}

#[test]
fn texts_are_cut_sooner_with_their_last_token() {
    let tokenizer = tokenizer(&bert(), 16);
    let encoding = tokenizer.encode_up_to(&["a b a b", "b"], 4).expect("encoded");
    assert_eq!((encoding.batch, encoding.tokens), (2, 4));
    assert_eq!(encoding.input_ids, [2, 5, 6, 3, 2, 6, 3, 0]);
}

proptest! {
    #[test]
    fn parts_have_the_tokens_of_the_whole(
        pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..400),
        max_tokens in 3_usize..24,
    ) {
        let (tokenizer, text) = (tokenizer(&bert(), max_tokens), pieces.concat());
        let whole = of_whole(&tokenizer, &text);
        prop_assert_eq!(tokenizer.encode_one(&text).expect("encoded"), whole);
    }
}

#[test]
fn a_name_that_is_there_twice_is_refused() {
    let text = bert().to_string();
    assert!(read_json(text.as_bytes()).is_ok());
    let twice = text.replacen("\"a\":5", "\"a\":5,\"a\":6", 1);
    assert_ne!(twice, text);
    let error = read_json(twice.as_bytes()).expect_err("two ids of one word");
    assert!(error.to_string().contains("`a`"), "{error}");
}
