//! Keys of GGUF files: which of them become a configuration, and which do not matter.
//!
//! A key that is not known is refused. It might change what the network computes.

use serde_json::{Map, Value, json};

use super::{Architecture, names};
use crate::{
    family::Fault,
    pool::{GgufFile, GgufValue},
};

/// Integers of an architecture, below its name, and their keys in transformers.
const INTEGERS: [[&str; 2]; 7] = [
    ["attention.head_count", "num_attention_heads"],
    ["attention.head_count_kv", "num_key_value_heads"],
    ["attention.key_length", "head_dim"],
    ["block_count", "num_hidden_layers"],
    ["context_length", "max_position_embeddings"],
    ["embedding_length", "hidden_size"],
    ["feed_forward_length", "intermediate_size"],
];

/// Floating-point numbers of an architecture, and their keys in transformers.
const FLOATS: [[&str; 2]; 2] =
    [["attention.layer_norm_rms_epsilon", "rms_norm_eps"], ["rope.freq_base", "rope_theta"]];

/// Integers and floating-point numbers of Gemma 3 alone, and their keys in transformers.
const GEMMA_INTEGERS: [[&str; 2]; 2] = [
    ["attention.sliding_window", "sliding_window"],
    ["attention.sliding_window_pattern", "sliding_window_pattern"],
];
const GEMMA_FLOATS: [[&str; 2]; 1] = [["rope.freq_base_swa", "rope_local_base_freq"]];

/// Integers of architectures with experts, and their keys in transformers.
const EXPERT_INTEGERS: [[&str; 2]; 4] = [
    [EXPERT_COUNT, "num_experts"],
    ["expert_feed_forward_length", "moe_intermediate_size"],
    ["expert_shared_feed_forward_length", "shared_expert_intermediate_size"],
    ["expert_used_count", "num_experts_per_tok"],
];

/// Key of the number of experts, which is 0 without experts.
const EXPERT_COUNT: &str = "expert_count";

/// Number of blocks of the one size of Gemma 3 whose scores are not divided by the root of the
/// width of heads, but by that of the width of hidden states by the number of heads. Files do not
/// say it otherwise.
const GEMMA_27B_BLOCKS: u64 = 62;

/// Base of the wavelengths of rotary positions in files that do not have it.
const THETA: f64 = 1e4;

/// Keys of an architecture that are compared with others, or read for the scaling of positions.
const COMPARED: [&str; 5] = [
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
];

/// Keys of an architecture of which one value is supported.
const ONLY: [[&str; 2]; 3] =
    [["attention.causal", "true"], ["rope.scale_linear", "1"], ["use_parallel_residual", "false"]];

/// Keys of experts and the values that they have in files of architectures without experts.
const WITHOUT_EXPERTS: [[&str; 2]; 2] = [[EXPERT_COUNT, "0"], ["expert_used_count", "0"]];

/// Keys of an architecture that change nothing that is computed here. The length for which a model
/// was first trained matters to scalings that are refused, or that a tensor says.
const IGNORED: [&str; 3] =
    ["rope.scaling.finetuned", "rope.scaling.original_context_length", "tensor_data_layout"];

/// Tables whose keys do not change the network: who wrote the file, the tokenizer, and how weights
/// were quantized.
const IGNORED_TABLES: [&str; 4] = ["general.", "imatrix.", "quantize.", "tokenizer."];

/// Keys of a file that was split, and the values of one that was not.
const SPLIT: [(&str, u64); 2] = [("split.count", 1), ("split.no", 0)];

/// Returns the configuration in transformers' keys.
///
/// # Errors
///
/// Fails on a key that is unknown, missing or has a value that is not supported.
pub(super) fn config(
    file: &GgufFile,
    architecture: Architecture,
    ignored: &[String],
) -> Result<Value, Fault> {
    let keys = Settings { file, architecture, ignored };
    keys.check_known()?;
    let mut config = Map::new();
    let num_experts = keys.integer(EXPERT_COUNT)?.unwrap_or(0);
    let experts = architecture.experts.filter(|_| num_experts > 0);
    let model_type = experts.map_or(architecture.model_type, |experts| experts.model_type);
    config.insert("model_type".into(), json!(model_type));
    if let Some(experts) = experts {
        config.insert("norm_topk_prob".into(), json!(experts.are_renormalized));
    }
    config.insert("rope_theta".into(), json!(THETA));
    for [key, theirs] in keys.integers() {
        if let Some(value) = keys.integer(key)? {
            config.insert((*theirs).into(), json!(value));
        }
    }
    for [key, theirs] in keys.floats() {
        if let Some(value) = keys.float(key)? {
            config.insert((*theirs).into(), json!(value));
        }
    }
    for key in ["attention.head_count", "block_count", "embedding_length", "feed_forward_length"] {
        keys.needed(key)?;
    }
    let has = |name: &str| file.tensors().any(|(known, _)| known == name);
    let words = file.tensors().find(|(name, _)| *name == names::EMBEDDINGS);
    let num_words = words.and_then(|(_, place)| place.shape.first()).copied().unwrap_or(0);
    config.insert("vocab_size".into(), json!(num_words));
    config.insert("tie_word_embeddings".into(), json!(!has(names::HEAD)));
    if !architecture.has_head_norms && architecture.is_interleaved && has(names::QUERY_BIAS) {
        config.insert("attention_bias".into(), json!(true));
    }
    keys.compare("vocab_size", num_words as u64)?;
    let head_width = keys.head_width()?;
    keys.compare("rope.dimension_count", head_width)?;
    keys.compare("attention.value_length", head_width)?;
    config.insert("head_dim".into(), json!(head_width));
    if architecture.is_gemma {
        keys.needed("attention.sliding_window")?;
        config.insert("query_pre_attn_scalar".into(), json!(keys.score_scalar(head_width)?));
    }
    if let Some(scaling) = keys.scaling()? {
        config.insert("rope_scaling".into(), scaling);
    }
    Ok(config.into())
}

/// Keys of a file of an architecture.
#[derive(Debug, Clone, Copy)]
struct Settings<'f> {
    file: &'f GgufFile,
    architecture: Architecture,
    /// Keys that count as absent.
    ignored: &'f [String],
}

impl<'f> Settings<'f> {
    /// Returns the whole name of a key of the architecture.
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    /// Returns the value of a key of the architecture, or `None` if it is absent.
    fn value(&self, key: &str) -> Option<&'f GgufValue> {
        let name = self.name(key);
        self.file.value(&name).filter(|_| !self.ignored.contains(&name))
    }

    /// Checks that each key of the file is known, and that keys have the one supported value.
    fn check_known(&self) -> Result<(), Fault> {
        for (key, value) in self.file.values() {
            let is_ignored = self.ignored.iter().any(|ignored| ignored == key)
                || IGNORED_TABLES.iter().any(|table| key.starts_with(table));
            let split = SPLIT.iter().find(|(known, _)| *known == key);
            let own = key.strip_prefix(self.architecture.name).and_then(|k| k.strip_prefix('.'));
            let mut one_value = ONLY.iter().chain(&WITHOUT_EXPERTS);
            let only = own.and_then(|own| one_value.find(|[known, _]| *known == own));
            if is_ignored || own.is_some_and(|own| self.is_read(own)) {
                continue;
            }
            match (only, split) {
                (Some([_, only]), _) if value.to_string() == *only => {}
                (Some([_, only]), _) => {
                    return Err(Fault::new(key, value, format!("{only} is supported")));
                }
                (_, Some((_, only))) if value.as_unsigned() == Some(*only) => {}
                (_, Some(_)) => {
                    let expected = "files of several parts are not supported; \
                                    `llama-gguf-split --merge` joins them";
                    return Err(Fault::new(key, value, expected));
                }
                _ => {
                    let expected = "this key is not known, and might change answers; if it does \
                                    not, name it in the anchor's `ignored_keys`";
                    return Err(Fault::new(key, value, expected));
                }
            }
        }
        Ok(())
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, Fault> {
        let wrong = |value| Fault::new(self.name(key), value, "one whole number is needed");
        self.value(key).map(|value| value.as_unsigned().ok_or_else(|| wrong(value))).transpose()
    }

    fn float(&self, key: &str) -> Result<Option<f64>, Fault> {
        let wrong = |value| Fault::new(self.name(key), value, "a finite number is needed");
        let read = |value: &GgufValue| value.as_float().filter(|value| value.is_finite());
        self.value(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    /// Returns the integer of a key that must be there.
    fn needed(&self, key: &str) -> Result<u64, Fault> {
        let missing = || Fault::new(self.name(key), "missing", "a whole number is needed");
        self.integer(key)?.ok_or_else(missing)
    }

    /// Checks that a key, if it is there, has the value `expected`.
    fn compare(&self, key: &str, expected: u64) -> Result<(), Fault> {
        match self.integer(key)? {
            Some(found) if found != expected => {
                Err(Fault::new(self.name(key), found, format!("{expected} is supported here")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the width of a head.
    fn head_width(&self) -> Result<u64, Fault> {
        if let Some(width) = self.integer("attention.key_length")? {
            return Ok(width);
        }
        let (width, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        let expected = "at least 1 is needed";
        width
            .checked_div(heads)
            .ok_or_else(|| Fault::new(self.name("attention.head_count"), heads, expected))
    }

    /// Returns the number whose root divides Gemma 3's scores.
    fn score_scalar(&self, head_width: u64) -> Result<u64, Fault> {
        if self.needed("block_count")? != GEMMA_27B_BLOCKS {
            return Ok(head_width);
        }
        let (width, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        Ok(width.checked_div(heads).unwrap_or(head_width))
    }

    /// Returns the integers of the architecture.
    fn integers(&self) -> impl Iterator<Item = &'static [&'static str; 2]> {
        let own: &[_] = if self.architecture.is_gemma { &GEMMA_INTEGERS } else { &[] };
        let experts: &[_] =
            if self.architecture.experts.is_some() { &EXPERT_INTEGERS } else { &[] };
        INTEGERS.iter().chain(own).chain(experts)
    }

    /// Returns the floating-point numbers of the architecture.
    fn floats(&self) -> impl Iterator<Item = &'static [&'static str; 2]> {
        let own: &[_] = if self.architecture.is_gemma { &GEMMA_FLOATS } else { &[] };
        FLOATS.iter().chain(own)
    }

    /// Returns whether `key` of the architecture is read or does not matter.
    fn is_read(&self, key: &str) -> bool {
        let mut pairs = self.integers().chain(self.floats());
        pairs.any(|[known, _]| *known == key) || COMPARED.contains(&key) || IGNORED.contains(&key)
    }

    /// Returns the scaling of positions in transformers' keys, or `None` without one.
    fn scaling(&self) -> Result<Option<Value>, Fault> {
        let kind = self.value("rope.scaling.type");
        match kind.map(|kind| kind.as_text().unwrap_or_default()) {
            None | Some("none") => Ok(None),
            Some("linear") => {
                let factor = self.float("rope.scaling.factor")?.unwrap_or(1.0);
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            Some(other) => {
                let expected = "the types `none` and `linear` are supported";
                Err(Fault::new(self.name("rope.scaling.type"), other, expected))
            }
        }
    }
}

/// Returns the keys of all tables.
#[cfg(test)]
pub(super) fn known_keys() -> Vec<&'static str> {
    let tables = INTEGERS.iter().chain(&FLOATS).chain(&GEMMA_INTEGERS).chain(&GEMMA_FLOATS);
    let read = tables.chain(&EXPERT_INTEGERS).chain(&ONLY).map(|[key, _]| *key);
    read.chain(COMPARED).chain(IGNORED).collect()
}
