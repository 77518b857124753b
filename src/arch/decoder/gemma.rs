//! Gemma 3's blocks (Gemma Team 2025): most have a window and positions of their own, and every
//! sixth sees all tokens before it.
//!
//! The rest of what distinguishes Gemma 3 is a constant of `dialects`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::rope::{Defaults, Rope};
use crate::{
    arch::{
        error::ArchError,
        keys::{ConfigFile, Keys},
    },
    family::Fault,
};

/// Keys of `config.json` beside those of every configuration.
pub(super) const KEYS: Keys = Keys {
    honoured: &[
        "attention_bias",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "vocab_size",
    ],
    only: &[
        // Gemma 3 was trained without the caps of Gemma 2.
        ("attn_logit_softcapping", &[]),
        ("final_logit_softcapping", &[]),
        ("hidden_activation", &["\"gelu_pytorch_tanh\""]),
        ("use_bidirectional_attention", &["false"]),
    ],
    ignored: &[
        ("`layer_types` and `sliding_window_pattern` say it", &["_sliding_window_pattern"]),
        ("it chooses an implementation", &["cache_implementation"]),
    ],
};

/// Keys of `rope_parameters`, one for each kind of block.
const KINDS: Keys = Keys { honoured: &[WHOLE, WINDOWED], only: &[], ignored: &[] };

/// Names of the kinds of blocks: without a window and with one.
const WHOLE: &str = "full_attention";
const WINDOWED: &str = "sliding_attention";

/// Number of blocks to the next without a window, if the configuration does not have it.
const PATTERN: usize = 6;

/// Base of the wavelengths in blocks with a window, if the configuration has none.
const LOCAL_THETA: f64 = 1e4;

/// Number whose root divides scores, if the configuration has none.
const SCORE_SCALAR: f64 = 256.0;

/// Settings of attention in which the blocks of a decoder may differ.
#[derive(Debug)]
pub(super) struct Layers {
    /// Factor on scores, or `None` for that of most decoders.
    pub(super) scale: Option<f32>,
    /// Settings of each block.
    pub(super) blocks: Vec<Layer>,
}

/// Settings of a block's attention.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Angles of rotary positions.
    pub(super) rope: Rope,
    /// Whether the block has the window of the configuration.
    pub(super) has_window: bool,
}

/// Keys of `config.json` that say how blocks differ.
#[derive(Debug, Deserialize)]
struct Config {
    num_hidden_layers: usize,
    layer_types: Option<Vec<String>>,
    max_position_embeddings: Option<usize>,
    query_pre_attn_scalar: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_parameters: Option<Map<String, Value>>,
    rope_scaling: Option<Map<String, Value>>,
    rope_theta: Option<f64>,
    sliding_window_pattern: Option<usize>,
}

/// Settings of rotary positions for each kind of block.
#[derive(Debug, Default, Deserialize)]
struct Kinds {
    full_attention: Option<Map<String, Value>>,
    sliding_attention: Option<Map<String, Value>>,
}

impl Layers {
    /// Creates the settings of a decoder with `count` equal blocks.
    pub(super) fn same(rope: &Rope, count: usize) -> Self {
        let block = Layer { rope: rope.clone(), has_window: true };
        Self { scale: None, blocks: vec![block; count] }
    }

    /// Reads the settings of Gemma 3's configuration `file`. If it has no base of wavelengths,
    /// that of blocks without a window is `theta`.
    ///
    /// # Errors
    ///
    /// Fails on settings that are not supported.
    pub(super) fn read(file: ConfigFile<'_>, theta: f64) -> Result<Self, ArchError> {
        let config: Config = file.read_some()?;
        let scale = config.scale().map_err(|fault| file.refuse(fault))?;
        let windowed = config.windowed().map_err(|fault| file.refuse(fault))?;
        let [whole, local] = config.ropes(file, theta)?;
        let block = |has_window: bool| Layer {
            rope: if has_window { local.clone() } else { whole.clone() },
            has_window,
        };
        Ok(Self { scale: Some(scale), blocks: windowed.into_iter().map(block).collect() })
    }
}

impl Config {
    /// Returns the factor on scores.
    fn scale(&self) -> Result<f32, Fault> {
        let scalar = self.query_pre_attn_scalar.unwrap_or(SCORE_SCALAR);
        if !(scalar > 0.0 && scalar.is_finite()) {
            let expected = "a number above 0 is needed";
            return Err(Fault::new("query_pre_attn_scalar", scalar, expected));
        }
        #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
        let scale = scalar.sqrt().recip() as f32;
        Ok(scale)
    }

    /// Returns for each block whether it has the window.
    fn windowed(&self) -> Result<Vec<bool>, Fault> {
        let Some(types) = &self.layer_types else {
            let pattern = self.sliding_window_pattern.unwrap_or(PATTERN);
            if pattern == 0 {
                let expected = "at least 1 is needed";
                return Err(Fault::new("sliding_window_pattern", pattern, expected));
            }
            let blocks = 1..=self.num_hidden_layers;
            return Ok(blocks.map(|number| !number.is_multiple_of(pattern)).collect());
        };
        if types.len() != self.num_hidden_layers {
            let expected = format!("num_hidden_layers is {}", self.num_hidden_layers);
            return Err(Fault::new("layer_types", types.len(), expected));
        }
        let has_window = |name: &String| match name.as_str() {
            WHOLE => Ok(false),
            WINDOWED => Ok(true),
            other => {
                let expected = format!("`{WHOLE}` and `{WINDOWED}` are supported");
                Err(Fault::new("layer_types", other, expected))
            }
        };
        types.iter().map(has_window).collect()
    }

    /// Returns the angles of rotary positions in blocks without a window and with one. `theta` is
    /// the base of the former's wavelengths if the configuration has none.
    fn ropes(&self, file: ConfigFile<'_>, theta: f64) -> Result<[Rope; 2], ArchError> {
        let parameters = "rope_parameters";
        let kinds: Kinds = match &self.rope_parameters {
            Some(found) => file.nested(parameters, found, &[KINDS])?,
            None => Kinds::default(),
        };
        let keys = [WHOLE, WINDOWED].map(|kind| format!("{parameters}.{kind}"));
        let [mut whole_key, local_key] = keys;
        let mut whole = kinds.full_attention.unwrap_or_default();
        // The earlier key is about blocks without a window alone.
        if let Some(scaling) = &self.rope_scaling {
            whole.extend(scaling.clone());
            whole_key = "rope_scaling".to_owned();
        }
        let local = kinds.sliding_attention.unwrap_or_default();
        let read = |key: &str, settings: &Map<String, Value>, theta: f64| {
            let defaults = Defaults { theta, max_tokens: self.max_position_embeddings };
            Rope::read(file, Some((key, settings)), defaults)
        };
        let local_theta = self.rope_local_base_freq.unwrap_or(LOCAL_THETA);
        Ok([
            read(&whole_key, &whole, self.rope_theta.unwrap_or(theta))?,
            read(&local_key, &local, local_theta)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn read(config: &Value) -> Result<Layers, String> {
        let text = config.to_string();
        let file = ConfigFile { path: Path::new("config.json"), text: &text, ignored: &[] };
        Layers::read(file, 1e6).map_err(|error| error.to_string())
    }

    #[test]
    fn every_sixth_block_has_no_window_and_longer_wavelengths() {
        let layers = read(&json!({"num_hidden_layers": 13})).expect("supported");
        assert_eq!(layers.scale, Some(1.0 / 16.0));
        for (index, layer) in layers.blocks.iter().enumerate() {
            let is_whole = [5, 11].contains(&index);
            assert_eq!(layer.has_window, !is_whole, "block {index}");
            let second = if is_whole { 1e-3 } else { 1e-2 };
            assert_eq!(layer.rope.frequencies(2), [1.0, second], "block {index}");
        }
    }

    #[test]
    fn keys_of_both_versions_of_transformers_say_the_same() {
        let earlier = json!({"num_hidden_layers": 4, "sliding_window_pattern": 2,
            "rope_theta": 100, "rope_local_base_freq": 25,
            "rope_scaling": {"rope_type": "linear", "factor": 8}});
        let later = json!({"num_hidden_layers": 4,
        "layer_types": [WINDOWED, WHOLE, WINDOWED, WHOLE],
        "rope_parameters": {
            WINDOWED: {"rope_type": "default", "rope_theta": 25},
            WHOLE: {"rope_type": "linear", "factor": 8, "rope_theta": 100},
        }});
        for config in [earlier, later] {
            let layers = read(&config).expect("supported");
            let frequencies = |index: usize| layers.blocks[index].rope.frequencies(2);
            assert_eq!(layers.blocks.len(), 4);
            assert_eq!(frequencies(0), [1.0, 0.2], "{config}");
            assert_eq!(frequencies(3), [0.125, 0.0125], "{config}");
        }
    }

    #[test]
    fn blocks_of_other_kinds_are_refused_by_key() {
        for (config, reason) in [
            (json!({"layer_types": [WHOLE]}), "`layer_types` is `1`, but num_hidden_layers is 2"),
            (json!({"layer_types": [WHOLE, "chunked"]}), "`layer_types` is `chunked`"),
            (json!({"sliding_window_pattern": 0}), "`sliding_window_pattern` is `0`"),
            (json!({"query_pre_attn_scalar": 0}), "`query_pre_attn_scalar` is `0`"),
            (json!({"rope_scaling": {"type": "yarn"}}), "`rope_scaling.rope_type` is `yarn`"),
            (
                json!({"rope_parameters": {WINDOWED: {"rope_type": "yarn"}}}),
                "`rope_parameters.sliding_attention.rope_type` is `yarn`",
            ),
            (json!({"rope_parameters": {"rope_theta": 5}}), "`rope_parameters.rope_theta`"),
        ] {
            let mut config = config;
            config["num_hidden_layers"] = json!(2);
            let error = read(&config).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
