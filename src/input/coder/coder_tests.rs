//! Tests of tokenizers of generating models.

use serde_json::json;

use super::*;

/// Returns a vocabulary of all bytes, a few joined pairs, two special tokens and an added one.
fn spec() -> VocabularySpec {
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte).to_string(),
        b' ' => "Ġ".into(),
        b'\n' => "Ċ".into(),
        _ => format!("<{byte}>"),
    };
    let mut tokens: Vec<String> = (0..=255).map(character).collect();
    let mut token_kinds = vec![TokenKind::Normal; tokens.len()];
    let merges = ["a b", "Ġ a", "Ġ ab", "Ċ Ċ", "1 2"].map(str::to_owned).to_vec();
    for joined in ["ab", "Ġa", "Ġab", "ĊĊ", "12"] {
        tokens.push(joined.into());
        token_kinds.push(TokenKind::Normal);
    }
    for (token, kind) in [
        ("<|im_start|>", TokenKind::Control),
        ("<|im_end|>", TokenKind::Control),
        ("<tool>", TokenKind::UserDefined),
    ] {
        tokens.push(token.into());
        token_kinds.push(kind);
    }
    VocabularySpec {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        token_kinds,
        merges,
        eos_id: Some(262),
        bos_id: Some(261),
        add_bos: Some(false),
        ..VocabularySpec::default()
    }
}

fn coder() -> TextCoder {
    TextCoder::from_vocabulary(&spec()).expect("valid")
}

#[test]
fn special_tokens_are_read_only_where_they_may() {
    let coder = coder();
    let text = "<|im_start|>ab<|im_end|>";
    let ids = coder.encode(text, SpecialText::Tokens).unwrap();
    assert_eq!(ids, [261, 256, 262]);
    let ids = coder.encode(text, SpecialText::Text).unwrap();
    assert!(!ids.contains(&261) && !ids.contains(&262) && ids.contains(&256), "{ids:?}");
    assert_eq!(coder.decode(&ids, SpecialText::Text), text);
    // The second of the chat is the user's.
    let guards = [13 + 3];
    let ids = coder.encode_chat("<|im_start|><|im_end|>ab<|im_end|>", &guards).unwrap();
    assert_eq!((ids[0], ids.last()), (261, Some(&262)));
    assert_eq!(ids.iter().filter(|id| **id == 262).count(), 1);
}

#[test]
fn an_added_token_is_one_in_every_text() {
    let ids = coder().encode("ab<tool>ab", SpecialText::Text).unwrap();
    assert_eq!(ids, [256, 263, 256]);
    assert_eq!(coder().decode(&ids, SpecialText::Tokens), "ab<tool>ab");
}

#[test]
fn words_are_put_together_across_the_border_of_template_and_user() {
    let ids = coder().encode_chat("<|im_start|>\n\n", &[13]).unwrap();
    assert_eq!(ids, [261, 259]);
}

/// Returns a vocabulary of SentencePiece: special tokens, bytes, characters and joined ones.
fn sentence_pieces(add_space_prefix: bool) -> VocabularySpec {
    let mut tokens: Vec<String> = ["<unk>", "<bos>", "<eos>"].map(str::to_owned).to_vec();
    let mut token_kinds = vec![TokenKind::Control; 3];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    token_kinds.resize(tokens.len(), TokenKind::Byte);
    let mut scores = vec![0.0; tokens.len()];
    for (token, score) in
        [("▁", -9.0), ("a", -9.0), ("b", -9.0), ("bb", -1.0), ("▁a", -2.0), ("ab", -3.0)]
    {
        tokens.push(token.to_owned());
        token_kinds.push(TokenKind::Normal);
        scores.push(score);
    }
    tokens.push("\n\n".to_owned());
    token_kinds.push(TokenKind::UserDefined);
    scores.push(-9.0);
    VocabularySpec {
        model: "llama".into(),
        tokens,
        token_kinds,
        scores,
        bos_id: Some(1),
        eos_id: Some(2),
        unknown_id: Some(0),
        add_space_prefix: Some(add_space_prefix),
        ..VocabularySpec::default()
    }
}

#[test]
fn characters_of_sentence_piece_are_joined_by_score_and_others_are_bytes() {
    let [plain, prefixed] = [false, true]
        .map(|prefix| TextCoder::from_vocabulary(&sentence_pieces(prefix)).expect("valid"));
    let space = 259;
    let [a, b, bb, space_a, ab, lines] = [1, 2, 3, 4, 5, 6].map(|more| space + more);
    let bytes = |text: &str| text.bytes().map(|byte| u32::from(byte) + 3).collect::<Vec<_>>();
    for (text, expected) in [
        ("ab", vec![ab]),
        // Of two that overlap, the one with the higher score is joined.
        ("abb", vec![a, bb]),
        (" ab", vec![space_a, b]),
        ("a  a", vec![a, space, space_a]),
        ("é", bytes("é")),
        ("b\n\nb\n", [vec![b, lines, b], bytes("\n")].concat()),
        ("<0x41>", bytes("<0x41>")),
    ] {
        let ids = plain.encode(text, SpecialText::Text).unwrap();
        assert_eq!(ids, expected, "{text}");
        assert_eq!(plain.decode(&ids, SpecialText::Text), text);
    }
    assert_eq!(plain.encode_prompt("<eos>ab").unwrap(), [1, 2, ab]);
    assert_eq!(prefixed.encode("abb", SpecialText::Text).unwrap(), [space_a, bb]);
    assert_eq!(prefixed.encode_prompt("a<eos>a").unwrap(), [1, space_a, 2, space_a]);
}

#[test]
fn digits_are_tokens_of_their_own_or_not_as_the_vocabulary_says() {
    let ids = |pre: &str| {
        let spec = VocabularySpec { pre: Some(pre.into()), ..spec() };
        let coder = TextCoder::from_vocabulary(&spec).expect("valid");
        coder.encode("12", SpecialText::Text).unwrap()
    };
    assert_eq!(ids("smollm"), [49, 50]);
    assert_eq!(ids("qwen2"), [49, 50]);
    assert_eq!(ids("gpt-2"), [260]);
    assert_eq!(ids("llama-bpe"), [260]);
}

#[test]
fn a_start_token_is_written_once() {
    let spec = VocabularySpec { add_bos: Some(true), ..spec() };
    let coder = TextCoder::from_vocabulary(&spec).expect("valid");
    assert_eq!(coder.encode_prompt("ab").unwrap(), [261, 256]);
    assert_eq!(coder.encode_prompt("<|im_start|>ab").unwrap(), [261, 256]);
    assert_eq!(coder.encode_chat("ab", &[]).unwrap(), [261, 256]);
    assert_eq!(coder.encode("ab", SpecialText::Tokens).unwrap(), [256]);
    assert_eq!(self::coder().encode_prompt("ab").unwrap(), [256]);
    let spec = VocabularySpec { add_bos: None, pre: Some("llama-bpe".into()), ..spec };
    let coder = TextCoder::from_vocabulary(&spec).expect("valid");
    assert_eq!(coder.encode_prompt("ab").unwrap(), [261, 256]);
}

#[test]
fn ends_are_those_of_the_file_and_the_known() {
    let coder = coder();
    assert_eq!(coder.ends(), [262]);
    assert_eq!(coder.with_ends(&[5, 3, 5]).ends(), [3, 5]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let error = |change: fn(&mut VocabularySpec)| {
        let mut spec = spec();
        change(&mut spec);
        TextCoder::from_vocabulary(&spec).expect_err("refused").to_string()
    };
    let unknown = error(|spec| spec.pre = Some("tekken".into()));
    assert!(unknown.contains("`tekken`") && unknown.contains("`smollm`"), "{unknown}");
    assert!(error(|spec| spec.pre = None).contains("is missing"));
    assert!(error(|spec| spec.model = "bert".into()).contains("`bert`"));
    assert!(error(|spec| spec.token_kinds.truncate(3)).contains("token_type"));
    assert!(error(|spec| spec.eos_id = Some(264)).contains("eos_token_id"));
    assert!(error(|spec| spec.merges.clear()).contains("merges"));
    assert!(error(|spec| spec.merges.push("ab".into())).contains("\"ab\" is not a pair"));
    assert!(error(|spec| spec.merges.push("x yz".into())).contains("yz"));
    assert!(error(|spec| spec.tokens.clear()).contains("tokenizer.ggml.tokens"));
}

#[test]
fn pieces_without_scores_or_of_many_bytes_are_refused_by_key() {
    let error = |change: fn(&mut VocabularySpec)| {
        let mut spec = sentence_pieces(false);
        change(&mut spec);
        TextCoder::from_vocabulary(&spec).expect_err("refused").to_string()
    };
    assert!(error(|spec| spec.scores.clear()).contains("`tokenizer.ggml.scores`: missing"));
    assert!(error(|spec| spec.scores[5] = f32::NAN).contains("not a number"));
    assert!(error(|spec| spec.tokens[260] = "a".repeat(513)).contains("over 512 bytes"));
    // A hundred kilobytes of tokens, each of which any two others make.
    let ambiguous = error(|spec| {
        for length in 2..=512 {
            spec.tokens.push("a".repeat(length));
            spec.token_kinds.push(TokenKind::Normal);
            spec.scores.push(0.0);
        }
    });
    assert!(ambiguous.contains("too many ways"), "{ambiguous}");
}

/// Returns the `tokenizer.json` of a small tokenizer in SentencePiece's way.
fn sentence_piece() -> serde_json::Value {
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "<0xC3>", "<0xA9>"];
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
            "split": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "vocab": vocabulary, "merges": [["▁", "a"]]},
    })
}

#[test]
fn a_tokenizer_json_is_read_with_what_it_starts_texts_with() {
    let coder = TextCoder::from_json(sentence_piece().to_string().as_bytes()).expect("valid");
    assert_eq!(coder.encode_prompt("ab").unwrap(), [1, 6, 5]);
    assert_eq!(coder.encode_chat("ab", &[]).unwrap(), [6, 5]);
    // Only the first word of a text is given a space.
    assert_eq!(coder.encode("a</s>a", SpecialText::Tokens).unwrap(), [6, 2, 4]);
    let ids = coder.encode("é", SpecialText::Tokens).unwrap();
    assert_eq!(ids, [3, 7, 8]);
    assert_eq!(coder.decode(&ids, SpecialText::Text), " é");
    assert_eq!(coder.decode(&[1, 4, 2], SpecialText::Tokens), "a");
    assert_eq!((coder.vocabulary_size(), coder.bytes(7)), (9, &[0xC3][..]));
}

#[test]
fn a_tokenizer_json_without_bytes_of_tokens_is_refused() {
    let mut json = sentence_piece();
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let error = TextCoder::from_json(json.to_string().as_bytes()).expect_err("refused");
    assert!(error.to_string().contains("decoder"), "{error}");
    TextCoder::from_json(b"{").expect_err("not a tokenizer");
}

/// Returns the vocabulary of `tools/tokens_reference.py`, with the way of splitting `pre`.
fn reference(pre: &str) -> TextCoder {
    let json = include_str!("../../../tests/references/tokens/vocabulary.json");
    let json: serde_json::Value = serde_json::from_str(json).expect("the file of the script");
    let texts = |key: &str| -> Vec<String> {
        serde_json::from_value(json[key].clone()).expect("a list of texts")
    };
    let kinds: Vec<i32> = serde_json::from_value(json["kinds"].clone()).expect("a list of kinds");
    let kind = |code: &i32| TokenKind::from_code(*code).expect("a kind");
    let spec = VocabularySpec {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: texts("tokens"),
        token_kinds: kinds.iter().map(kind).collect(),
        merges: texts("merges"),
        ..VocabularySpec::default()
    };
    TextCoder::from_vocabulary(&spec).expect("valid")
}

#[test]
fn ids_are_those_of_llama_cpp() {
    let json = include_str!("../../../tests/references/tokens/expected.json");
    let rows: Vec<serde_json::Value> = serde_json::from_str(json).expect("the file of the script");
    assert!(rows.len() > 50);
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        serde_json::from_value(value.clone()).expect("a list of ids")
    };
    for pre in ["smollm", "qwen2", "llama-bpe", "gpt-2"] {
        let coder = reference(pre);
        for row in &rows {
            let text = row["text"].as_str().expect("a text");
            let found = coder.encode(text, SpecialText::Tokens).unwrap();
            assert_eq!(found, ids(&row[pre]), "{pre}: {text:?}");
            assert_eq!(coder.decode(&found, SpecialText::Text), text, "{pre}");
        }
    }
    let coder = reference("smollm");
    for row in &rows {
        let text = row["text"].as_str().expect("a text");
        assert_eq!(coder.encode(text, SpecialText::Text).unwrap(), ids(&row["as_text"]));
    }
}
