//! `tokenizer_config.json`: settings of an encoder's texts, beside those of `tokenizer.json`.
//!
//! Texts are read as `tokenizer.json` says. transformers lets the other file change it in part, and
//! so a file that says another thing is refused by its key.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    arch::{error::ArchError, keys::ConfigFile},
    family::Fault,
};

/// Settings of texts that change embeddings.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TextConfig {
    model_max_length: Option<Value>,
    truncation_side: Option<Value>,
    padding_side: Option<Value>,
    do_lower_case: Option<Value>,
    strip_accents: Option<Value>,
    tokenize_chinese_chars: Option<Value>,
    cls_token: Option<Value>,
    sep_token: Option<Value>,
    unk_token: Option<Value>,
}

impl TextConfig {
    /// Reads `file`. `tokenizer` is the content of `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Fails if texts would be read in another way than `tokenizer` says.
    pub(super) fn read(file: ConfigFile<'_>, tokenizer: &Value) -> Result<Self, ArchError> {
        let config: Self = file.read_some()?;
        match config.fault(tokenizer) {
            Some(fault) => Err(file.refuse(fault)),
            None => Ok(config),
        }
    }

    /// Returns the largest number of tokens of a text, or `None` if there is no limit.
    pub(super) fn max_tokens(&self) -> Option<usize> {
        // transformers writes 1e30 for no limit, which is no integer of 64 bits.
        let most = self.model_max_length.as_ref().and_then(Value::as_u64);
        most.and_then(|most| usize::try_from(most).ok())
    }

    /// Returns the first setting that differs from those of `tokenizer`, or `None`.
    fn fault(&self, tokenizer: &Value) -> Option<Fault> {
        let normalizer = &tokenizer["normalizer"];
        let is_bert = normalizer["type"] == "BertNormalizer";
        let lowercase = &normalizer["lowercase"];
        // Without a word on accents, lower case leaves them out.
        let accents = Some(&normalizer["strip_accents"]).filter(|strip| !strip.is_null());
        let [first, last] = ends(tokenizer);
        let side_of = |part: &str| tokenizer[part]["direction"].as_str().map(str::to_lowercase);
        let right = Value::from("right");
        let padded = self.padding_side.clone().or_else(|| side_of("padding").map(Value::from));
        let cut = side_of("truncation").map_or_else(|| right.clone(), Value::from);
        let unknown = tokenizer["model"].get("unk_token");
        let settings = [
            ("truncation_side", &self.truncation_side, Some(&cut)),
            ("padding_side", &padded, Some(&right)),
            ("do_lower_case", &self.do_lower_case, is_bert.then_some(lowercase)),
            ("strip_accents", &self.strip_accents, is_bert.then(|| accents.unwrap_or(lowercase))),
            (
                "tokenize_chinese_chars",
                &self.tokenize_chinese_chars,
                is_bert.then(|| &normalizer["handle_chinese_chars"]),
            ),
            ("cls_token", &self.cls_token, first),
            ("sep_token", &self.sep_token, last),
            ("unk_token", &self.unk_token, unknown),
        ];
        settings.into_iter().find_map(|(key, given, own)| {
            let (given, own) = (token(given.as_ref()?), token(own?));
            let is_equal = given == own || own.is_null();
            let expected = format!("texts are read with {own}");
            (!is_equal).then(|| Fault::new(key, given, expected))
        })
    }
}

/// Returns the text of a token that may have settings of its own.
fn token(value: &Value) -> &Value {
    value.get("content").unwrap_or(value)
}

/// Returns the tokens that `tokenizer` puts before and behind a text, as far as they are known.
fn ends(tokenizer: &Value) -> [Option<&Value>; 2] {
    let processor = &tokenizer["post_processor"];
    match processor["type"].as_str() {
        Some("BertProcessing" | "RobertaProcessing") => {
            ["cls", "sep"].map(|end| processor[end].get(0))
        }
        Some("TemplateProcessing") => {
            let template = processor["single"].as_array().map(Vec::as_slice).unwrap_or_default();
            [template.first(), template.last()]
                .map(|piece| piece.and_then(|piece| piece["SpecialToken"].get("id")))
        }
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn tokenizer() -> Value {
        json!({
            "normalizer": {"type": "BertNormalizer", "lowercase": true, "strip_accents": null,
                "handle_chinese_chars": true},
            "model": {"unk_token": "[UNK]"},
            "post_processor": {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}},
                {"SpecialToken": {"id": "[SEP]"}}]},
        })
    }

    fn read(config: &Value, tokenizer: &Value, ignored: &[&str]) -> Result<TextConfig, String> {
        let (text, path) = (config.to_string(), Path::new("tokenizer_config.json"));
        let ignored: Vec<String> = ignored.iter().map(|key| (*key).to_owned()).collect();
        let file = ConfigFile { path, text: &text, ignored: &ignored };
        TextConfig::read(file, tokenizer).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_like_those_of_the_tokenizer_are_read() {
        let config = json!({
            "do_lower_case": true, "strip_accents": true, "tokenize_chinese_chars": true,
            "cls_token": {"content": "[CLS]", "lstrip": false}, "sep_token": "[SEP]",
            "unk_token": "[UNK]", "padding_side": "right", "model_max_length": 8, "other": [1],
        });
        assert_eq!(read(&config, &tokenizer(), &[]).expect("read").max_tokens(), Some(8));
        let open = json!({"model_max_length": 1e30, "strip_accents": null});
        assert_eq!(read(&open, &tokenizer(), &[]).expect("read").max_tokens(), None);
    }

    #[test]
    fn settings_that_change_tokens_are_refused_by_key() {
        for (key, value, reason) in [
            ("do_lower_case", json!(false), "texts are read with true"),
            ("strip_accents", json!(false), "texts are read with true"),
            ("tokenize_chinese_chars", json!(false), "texts are read with true"),
            ("cls_token", json!("[MASK]"), "texts are read with \"[CLS]\""),
            ("sep_token", json!({"content": "[PAD]"}), "texts are read with \"[SEP]\""),
            ("unk_token", json!("[PAD]"), "texts are read with \"[UNK]\""),
            ("padding_side", json!("left"), "texts are read with \"right\""),
            ("truncation_side", json!("left"), "texts are read with \"right\""),
        ] {
            let config = json!({key: value});
            let error = read(&config, &tokenizer(), &[]).expect_err(key);
            assert!(error.contains(&format!("`{key}`")) && error.contains(reason), "{error}");
            assert!(read(&config, &tokenizer(), &[key]).is_ok(), "{key} is ignored");
        }
    }

    #[test]
    fn padding_on_the_left_is_refused_where_the_tokenizer_says_it() {
        let mut tokenizer = tokenizer();
        tokenizer["padding"] = json!({"direction": "Left"});
        let error = read(&json!({}), &tokenizer, &[]).expect_err("left");
        assert!(error.contains("`padding_side`"), "{error}");
        assert!(read(&json!({"padding_side": "right"}), &tokenizer, &[]).is_ok());
    }

    #[test]
    fn texts_are_cut_on_the_side_that_the_tokenizer_says() {
        let mut tokenizer = tokenizer();
        tokenizer["truncation"] = json!({"direction": "Left"});
        assert!(read(&json!({"truncation_side": "left"}), &tokenizer, &[]).is_ok());
        let error = read(&json!({"truncation_side": "right"}), &tokenizer, &[]).expect_err("right");
        assert!(error.contains("`truncation_side`") && error.contains("\"left\""), "{error}");
    }

    #[test]
    fn other_kinds_of_normalizers_do_not_read_those_of_bert() {
        let tokenizer = json!({"normalizer": {"type": "Precompiled"}, "model": {}});
        let config = json!({"do_lower_case": true, "strip_accents": false, "unk_token": "<unk>"});
        assert!(read(&config, &tokenizer, &[]).is_ok());
    }
}
