//! Keys of `config.json`: which of them a reader honours, ignores or supports in part.
//!
//! A key that no table has is refused. It might change what the network computes, and answers would
//! silently be others than those of the library that wrote the file. A manifest may name such keys
//! in `ignored_keys`.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ArchError;
use crate::{
    family::Fault,
    pool::{PoolError, parse_json},
};

/// Most characters of a value that an error shows.
const MAX_SHOWN_CHARS: usize = 80;

/// Largest whole number of a key that is honoured. Sizes are multiplied with one another.
const LARGEST: u64 = i32::MAX as u64;

/// Keys whose `null` libraries take for another value than that of an absent key.
const NOT_NULL: [&str; 3] = ["include_prompt", "model_type", "qkv_bias"];

/// Keys of a configuration by what a reader does with them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    /// Keys that are honoured.
    pub(super) honoured: &'static [&'static str],
    /// Keys of which only some values are supported, and those values in JSON.
    pub(super) only: &'static [(&'static str, &'static [&'static str])],
    /// Keys that do not change what is computed here, by the reason.
    pub(super) ignored: &'static [(&'static str, &'static [&'static str])],
}

/// A configuration, before its keys are checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConfigFile<'a> {
    /// Path of the file, for errors.
    pub(super) path: &'a Path,
    /// Content of the file.
    pub(super) text: &'a str,
    /// Keys that the manifest ignores.
    pub(super) ignored: &'a [String],
}

impl ConfigFile<'_> {
    /// Reads the configuration, whose keys must be in `tables`. Keys that the manifest ignores and
    /// those with the value `null` are left out.
    ///
    /// # Errors
    ///
    /// Fails on malformed JSON, unknown keys, and values that are not supported.
    pub(super) fn read<T: DeserializeOwned>(&self, tables: &[Keys]) -> Result<T, ArchError> {
        let config = self.keys()?;
        check(&config, tables).map_err(|fault| self.refuse(fault))?;
        self.typed("", config)
    }

    /// Reads the keys of the configuration that `T` has, like [`read`](Self::read). Other keys do
    /// not matter.
    ///
    /// # Errors
    ///
    /// Fails on malformed JSON and on values of other types.
    pub(super) fn read_some<T: DeserializeOwned>(&self) -> Result<T, ArchError> {
        self.typed("", self.keys()?)
    }

    /// Returns the keys that the manifest does not ignore, and whose values are not `null`.
    fn keys(&self) -> Result<Map<String, Value>, ArchError> {
        let mut config: Map<String, Value> = parse_json(self.path, self.text)?;
        config.retain(|key, _| !self.ignored.contains(key));
        drop_nulls(&mut config).map_err(|fault| self.refuse(fault))?;
        Ok(config)
    }

    /// Returns whether the configuration has `key`, also with the value `null`.
    ///
    /// # Errors
    ///
    /// Fails on malformed JSON.
    pub(super) fn has(&self, key: &str) -> Result<bool, ArchError> {
        let config: Map<String, Value> = parse_json(self.path, self.text)?;
        Ok(config.contains_key(key) && !self.ignored.iter().any(|ignored| ignored == key))
    }

    /// Reads `config`, which the configuration has under `key`, like [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// Fails like [`read`](Self::read).
    pub(super) fn nested<T: DeserializeOwned>(
        &self,
        key: &str,
        config: &Map<String, Value>,
        tables: &[Keys],
    ) -> Result<T, ArchError> {
        let is_ignored =
            |own: &str| self.ignored.iter().any(|ignored| *ignored == format!("{key}.{own}"));
        let mut config = config.clone();
        config.retain(|own, _| !is_ignored(own));
        drop_nulls(&mut config).map_err(|fault| self.refuse(fault.below(key)))?;
        check(&config, tables).map_err(|fault| self.refuse(fault.below(key)))?;
        self.typed(&format!("{key}."), config)
    }

    /// Reads `config`, whose keys have `prefix`. An error names the key, not only the types.
    fn typed<T: DeserializeOwned>(
        &self,
        prefix: &str,
        config: Map<String, Value>,
    ) -> Result<T, ArchError> {
        serde_path_to_error::deserialize(Value::Object(config)).map_err(|error| {
            let key = match error.path().to_string() {
                all if all == "." => prefix.trim_end_matches('.').to_owned(),
                key => format!("{prefix}{key}"),
            };
            let inner: serde_json::Error = error.into_inner();
            let message =
                if key.is_empty() { inner.to_string() } else { format!("{key}: {inner}") };
            PoolError::malformed(self.path, &message).into()
        })
    }

    /// Returns the error for `fault`.
    pub(super) fn refuse(&self, fault: Fault) -> ArchError {
        ArchError::Config { path: self.path.to_owned(), fault }
    }
}

/// Keys of every configuration that transformers writes.
pub(super) const TRANSFORMERS: Keys = Keys {
    honoured: &["model_type"],
    only: &[
        ("add_cross_attention", &["false"]),
        ("is_encoder_decoder", &["false"]),
        ("pruned_heads", &["{}"]),
        ("tie_encoder_decoder", &["false"]),
    ],
    ignored: &[
        (
            "they say who wrote the file, and with what",
            &[
                "_name_or_path",
                "_commit_hash",
                "architectures",
                "auto_map",
                "custom_pipelines",
                "transformers_version",
                "transformers.js_config",
                "unsloth_version",
                "unsloth_fixed",
            ],
        ),
        ("weights have the type that the file has", &["torch_dtype", "dtype"]),
        (
            "they choose an implementation",
            &[
                "_attn_implementation",
                "_attn_implementation_autoset",
                "attn_implementation",
                "chunk_size_feed_forward",
                "experts_implementation",
                "gradient_checkpointing",
                "pretraining_tp",
                "torchscript",
                "use_bfloat16",
                "use_cache",
            ],
        ),
        (
            "they choose outputs",
            &[
                "output_attentions",
                "output_hidden_states",
                "output_past",
                "output_router_logits",
                "return_dict",
            ],
        ),
        (
            "they are about training",
            &[
                "attention_dropout",
                "attention_probs_dropout_prob",
                "classifier_dropout",
                "dropout",
                "hidden_dropout_prob",
                "initializer_range",
                "problem_type",
                "router_aux_loss_coef",
                "router_jitter_noise",
                "tf_legacy_loss",
            ],
        ),
        (
            "they name classes and tasks",
            &["finetuning_task", "id2label", "label2id", "num_labels", "task_specific_params"],
        ),
        (
            "the tokenizer's file has them",
            &[
                "bos_token_id",
                "cls_token_id",
                "decoder_start_token_id",
                "eos_token_id",
                "pad_token_id",
                "prefix",
                "sep_token_id",
                "tokenizer_class",
                "unk_token_id",
            ],
        ),
        (
            "they are about generation",
            &[
                "bad_words_ids",
                "begin_suppress_tokens",
                "diversity_penalty",
                "do_sample",
                "early_stopping",
                "encoder_no_repeat_ngram_size",
                "exponential_decay_length_penalty",
                "forced_bos_token_id",
                "forced_eos_token_id",
                "length_penalty",
                "max_length",
                "min_length",
                "no_repeat_ngram_size",
                "num_beam_groups",
                "num_beams",
                "num_return_sequences",
                "output_scores",
                "remove_invalid_values",
                "repetition_penalty",
                "return_dict_in_generate",
                "suppress_tokens",
                "temperature",
                "top_k",
                "top_p",
                "typical_p",
            ],
        ),
        ("only cross-attention reads it", &["cross_attention_hidden_size"]),
    ],
};

/// Drops the keys of `config` that are `null`.
///
/// # Errors
///
/// Fails on a key of [`NOT_NULL`].
fn drop_nulls(config: &mut Map<String, Value>) -> Result<(), Fault> {
    let is_null = |key: &&str| config.get(*key).is_some_and(Value::is_null);
    if let Some(key) = NOT_NULL.into_iter().find(is_null) {
        return Err(Fault::new(key, "null", "a value is needed, or no such key"));
    }
    config.retain(|_, value| !value.is_null());
    Ok(())
}

/// Checks the keys of `config` against `tables`.
///
/// # Errors
///
/// Fails on a key that no table has, and on a value that is not supported, such as a size beyond
/// [`LARGEST`].
pub(super) fn check(config: &Map<String, Value>, tables: &[Keys]) -> Result<(), Fault> {
    for (key, value) in config {
        if let Some(values) = tables.iter().find_map(|table| table.supported(key)) {
            if !values.iter().any(|known| same(value, known)) {
                let expected = format!("{} is supported", values.join(" or "));
                return Err(Fault::new(key, shown(value), expected));
            }
        } else if !tables.iter().any(|table| table.has(key)) {
            let expected = "this key is not known, and might change answers; if it does not, name \
                            it in the anchor's `ignored_keys`";
            return Err(Fault::new(key, shown(value), expected));
        } else if value.as_u64().is_some_and(|size| size > LARGEST)
            && tables.iter().any(|table| table.honoured.contains(&key.as_str()))
        {
            let expected = format!("whole numbers up to {LARGEST} are supported");
            return Err(Fault::new(key, shown(value), expected));
        }
    }
    Ok(())
}

impl Keys {
    /// Returns the supported values of `key`, or `None` if all or none are.
    fn supported(&self, key: &str) -> Option<&'static [&'static str]> {
        self.only.iter().find(|(known, _)| *known == key).map(|(_, values)| *values)
    }

    fn has(&self, key: &str) -> bool {
        let mut ignored = self.ignored.iter().flat_map(|(_, keys)| *keys);
        self.honoured.contains(&key) || ignored.any(|known| *known == key)
    }
}

/// Returns whether `value` is the JSON `known`; numbers are equal by value.
fn same(value: &Value, known: &str) -> bool {
    let Ok(known) = serde_json::from_str::<Value>(known) else { return false };
    match (value.as_f64(), known.as_f64()) {
        (Some(value), Some(known)) => value.total_cmp(&known).is_eq(),
        _ => *value == known,
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OWN: Keys = Keys {
        honoured: &["hidden_size"],
        only: &[("is_decoder", &["false"]), ("factor", &["1", "2.5"])],
        ignored: &[("it is not read", &["pooler_type"])],
    };

    fn checked(config: &Value, ignored: &[&str]) -> Result<(), String> {
        let ignored: Vec<String> = ignored.iter().map(|key| (*key).to_owned()).collect();
        let text = config.to_string();
        let file = ConfigFile { path: Path::new("config.json"), text: &text, ignored: &ignored };
        let read = file.read::<Map<String, Value>>(&[TRANSFORMERS, OWN]);
        read.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn known_keys_are_honoured_or_ignored() {
        for config in [
            json!({"model_type": "bert", "hidden_size": 8, "pooler_type": "x", "top_k": 3}),
            json!({"is_decoder": false, "factor": 1.0}),
            json!({"factor": 2.5, "unknown": null}),
        ] {
            assert_eq!(checked(&config, &[]), Ok(()), "{config}");
        }
    }

    #[test]
    fn what_might_change_answers_is_refused_by_key_and_value() {
        for (config, reason) in [
            (json!({"is_decoder": true}), "key `is_decoder` is `true`, but false is supported"),
            (json!({"factor": 2}), "key `factor` is `2`, but 1 or 2.5 is supported"),
            (json!({"rope_scale": 4}), "key `rope_scale` is `4`, but this key is not known"),
            (json!({"pruned_heads": {"0": [1]}}), "`pruned_heads`"),
            (
                json!({"hidden_size": u64::MAX}),
                "key `hidden_size` is `18446744073709551615`, but whole numbers up to 2147483647",
            ),
        ] {
            let error = checked(&config, &[]).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_key() {
        #[derive(Debug, serde::Deserialize)]
        struct Sizes {
            #[expect(dead_code, reason = "only read")]
            hidden_size: usize,
        }
        let config = json!({"hidden_size": "wide"});
        let (text, path) = (config.to_string(), Path::new("config.json"));
        let file = ConfigFile { path, text: &text, ignored: &[] };
        let error = file.read::<Sizes>(&[OWN]).expect_err("a text").to_string();
        assert!(error.contains("hidden_size: invalid type"), "{error}");
        let nested = file.nested::<Sizes>("above", config.as_object().expect("a map"), &[OWN]);
        let error = nested.expect_err("a text").to_string();
        assert!(error.contains("above.hidden_size: invalid type"), "{error}");
    }

    #[test]
    fn a_null_that_is_not_the_default_is_refused_by_key() {
        let error = checked(&json!({"model_type": null}), &[]).expect_err("null");
        assert!(error.contains("key `model_type` is `null`"), "{error}");
    }

    #[test]
    fn a_manifest_may_ignore_keys_by_name() {
        let config = json!({"rope_scale": 4, "is_decoder": true});
        assert!(checked(&config, &["rope_scale"]).is_err());
        assert_eq!(checked(&config, &["rope_scale", "is_decoder"]), Ok(()));
    }

    #[test]
    fn no_key_stands_in_two_places() {
        let mut seen = std::collections::BTreeSet::new();
        for table in [TRANSFORMERS, OWN] {
            let only = table.only.iter().map(|(key, _)| key);
            let ignored = table.ignored.iter().flat_map(|(_, keys)| *keys);
            for key in table.honoured.iter().chain(only).chain(ignored) {
                assert!(seen.insert(*key), "`{key}` stands twice");
            }
        }
    }
}
