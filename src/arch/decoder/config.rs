//! Configurations of decoders with experts, from `config.json` with the keys of transformers 4 and
//! 5.

use std::path::Path;

use serde::Deserialize;

use crate::{
    arch::error::ArchError,
    module::{Order, Router},
    pool::parse_json,
};

/// Sizes of a decoder, and the computation of its layers.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Architecture of the checkpoint.
    pub(super) architecture: Architecture,
    /// Width of a hidden state.
    pub(super) width: usize,
    /// Number of blocks.
    pub(super) num_blocks: usize,
    /// Number of token ids.
    pub(super) num_words: usize,
    /// Maximum number of tokens that the decoder was made for.
    pub(super) max_tokens: usize,
    /// Epsilon of the norms.
    pub(super) epsilon: f32,
    /// Attention of every block.
    pub(super) attention: Attention,
    /// Experts of every block that has experts.
    pub(super) experts: Experts,
    /// Whether each block has one feed-forward part in place of experts.
    pub(super) dense: Vec<bool>,
    /// Number of hidden units of that feed-forward part.
    pub(super) dense_inner: usize,
    /// Factor on embeddings.
    pub(super) embedding_multiplier: f32,
    /// Factor on the output of a sub-layer before the residual is added.
    pub(super) residual_multiplier: f32,
    /// Divisor of the logits.
    pub(super) logits_divisor: f32,
    /// Whether the table of embeddings is also the head's matrix.
    pub(super) is_tied: bool,
}

/// Architectures of transformers whose checkpoints are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// Mixtral (Jiang et al. 2024).
    Mixtral,
    /// OLMoE (Muennighoff et al. 2024).
    Olmoe,
    /// Qwen1.5-MoE and Qwen2-MoE.
    Qwen2,
    /// Qwen3-MoE.
    Qwen3,
    /// GraniteMoE, with or without shared experts.
    Granite,
}

/// Settings of an attention sub-layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    /// Number of query heads.
    pub(super) num_heads: usize,
    /// Number of key and value heads, each of which several query heads share.
    pub(super) num_shared_heads: usize,
    /// Width of a head.
    pub(super) head_width: usize,
    /// Factor on scores.
    pub(super) scale: f32,
    /// Base of the rotations' wavelengths.
    pub(super) theta: f64,
    /// Whether queries, keys and values have biases.
    pub(super) has_biases: bool,
    /// Whether the output projection has a bias.
    pub(super) has_output_bias: bool,
    /// Normalization of queries and keys.
    pub(super) norms: Norms,
    /// Bound to which the absolute values of queries, keys and values are clamped, or `None`.
    pub(super) clip: Option<f32>,
    /// Number of tokens that each token sees, itself included; `None` for all tokens before it.
    pub(super) window: Option<usize>,
}

/// Normalization of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// No normalization.
    None,
    /// Normalization over all heads of a token together.
    Whole,
    /// Normalization of each head by itself.
    Heads,
}

/// Experts of a block.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    /// Router that chooses the experts.
    pub(super) router: Router,
    /// Number of hidden units of an expert.
    pub(super) inner: usize,
    /// Number of hidden units of the experts that all tokens share; 0 without shared experts.
    pub(super) shared_inner: usize,
}

/// Keys of `config.json` that affect the network.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    num_experts_per_tok: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f32>,
    max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    attention_bias: Option<bool>,
    qkv_bias: Option<bool>,
    clip_qkv: Option<f32>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    norm_topk_prob: Option<bool>,
    moe_intermediate_size: Option<usize>,
    shared_expert_intermediate_size: Option<usize>,
    shared_intermediate_size: Option<usize>,
    decoder_sparse_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    tie_word_embeddings: Option<bool>,
    embedding_multiplier: Option<f32>,
    residual_multiplier: Option<f32>,
    attention_multiplier: Option<f32>,
    logits_scaling: Option<f32>,
}

/// Settings of rotary positions.
#[derive(Debug, Clone, Default, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

/// Name of a refused key, its value and the valid values.
type Fault = (&'static str, String, String);

/// Reads `text`, the configuration at `path`, for a decoder of `architecture`.
///
/// # Errors
///
/// Fails on a configuration that is malformed, contradicts itself or is not supported.
pub(super) fn read(
    path: &Path,
    text: &str,
    architecture: Architecture,
) -> Result<Shape, ArchError> {
    let config: Config = parse_json(path, text)?;
    config.shape(architecture).map_err(|(key, value, expected)| ArchError::Config {
        path: path.to_owned(),
        key: key.into(),
        value,
        expected,
    })
}

impl Config {
    fn shape(&self, architecture: Architecture) -> Result<Shape, Fault> {
        use Architecture::{Granite, Mixtral, Olmoe};
        self.check_sizes()?;
        let epsilon = if matches!(architecture, Mixtral | Olmoe) { 1e-5 } else { 1e-6 };
        // Only Granite's code reads the multipliers.
        let of_granite =
            |value: Option<f32>| value.filter(|_| architecture == Granite).unwrap_or(1.0);
        Ok(Shape {
            architecture,
            width: self.hidden_size,
            num_blocks: self.num_hidden_layers,
            num_words: self.vocab_size,
            max_tokens: self.max_position_embeddings.unwrap_or(usize::MAX),
            epsilon: self.rms_norm_eps.unwrap_or(epsilon),
            attention: self.attention(architecture)?,
            experts: self.experts(architecture)?,
            dense: self.dense(architecture),
            dense_inner: self.intermediate_size,
            embedding_multiplier: of_granite(self.embedding_multiplier),
            residual_multiplier: of_granite(self.residual_multiplier),
            logits_divisor: of_granite(self.logits_scaling),
            is_tied: self.tie_word_embeddings.unwrap_or(false),
        })
    }

    fn check_sizes(&self) -> Result<(), Fault> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("vocab_size", self.vocab_size),
        ];
        if let Some((key, value)) = sizes.into_iter().find(|(_, value)| *value == 0) {
            return Err((key, value.to_string(), "at least 1 is needed".into()));
        }
        if !(1..=1_000).contains(&self.num_hidden_layers) {
            let found = self.num_hidden_layers.to_string();
            return Err(("num_hidden_layers", found, "1 to 1000 is supported".into()));
        }
        if let Some(other) = self.hidden_act.as_ref().filter(|name| *name != "silu") {
            return Err(("hidden_act", other.clone(), "`silu` is supported".into()));
        }
        Ok(())
    }

    fn attention(&self, architecture: Architecture) -> Result<Attention, Fault> {
        use Architecture::{Granite, Mixtral, Olmoe, Qwen2, Qwen3};
        let num_heads = self.num_attention_heads;
        let num_shared_heads = self.num_key_value_heads.unwrap_or(num_heads);
        if num_shared_heads == 0 || !num_heads.is_multiple_of(num_shared_heads) {
            let expected = format!("it must divide the {num_heads} heads of queries");
            return Err(("num_key_value_heads", num_shared_heads.to_string(), expected));
        }
        let head_width = self.head_dim.unwrap_or(self.hidden_size / num_heads);
        if head_width == 0 || !head_width.is_multiple_of(2) {
            let expected = "halves of heads are turned, so an even number is needed".into();
            return Err(("head_dim", head_width.to_string(), expected));
        }
        let is_windowed = self.use_sliding_window == Some(true);
        if is_windowed && architecture != Mixtral {
            let expected = "a window is supported for `mixtral`".into();
            return Err(("use_sliding_window", "true".into(), expected));
        }
        let own_biases = self.attention_bias.unwrap_or(false) && architecture != Mixtral;
        Ok(Attention {
            num_heads,
            num_shared_heads,
            head_width,
            scale: match self.attention_multiplier {
                Some(multiplier) if architecture == Granite => multiplier,
                _ => inverse_root(head_width),
            },
            theta: self.theta(architecture)?,
            has_biases: match architecture {
                Qwen2 => self.qkv_bias.unwrap_or(true),
                _ => own_biases,
            },
            has_output_bias: own_biases && architecture != Qwen2,
            norms: match architecture {
                Olmoe => Norms::Whole,
                Qwen3 => Norms::Heads,
                Mixtral | Qwen2 | Granite => Norms::None,
            },
            clip: self.clip_qkv.filter(|_| architecture == Olmoe),
            window: self.sliding_window.filter(|_| architecture == Mixtral),
        })
    }

    /// Returns the base of the wavelengths of rotary positions.
    fn theta(&self, architecture: Architecture) -> Result<f64, Fault> {
        let ropes =
            [("rope_parameters", &self.rope_parameters), ("rope_scaling", &self.rope_scaling)];
        for (key, rope) in ropes {
            let other = rope.as_ref().and_then(|rope| rope.rope_type.clone());
            if let Some(other) = other.filter(|name| name != "default") {
                return Err((key, other, "the type `default` is supported".into()));
            }
        }
        let given = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        let default = if architecture == Architecture::Mixtral { 1e6 } else { 1e4 };
        Ok(given.or(self.rope_theta).unwrap_or(default))
    }

    fn experts(&self, architecture: Architecture) -> Result<Experts, Fault> {
        use Architecture::{Granite, Mixtral, Qwen2, Qwen3};
        let key = match architecture {
            Mixtral | Granite => "num_local_experts",
            _ => "num_experts",
        };
        let given = match architecture {
            Mixtral | Granite => self.num_local_experts.or(self.num_experts),
            _ => self.num_experts.or(self.num_local_experts),
        };
        let count = given.filter(|count| *count > 0);
        let count = count.ok_or((key, "0".to_owned(), "at least 1 is needed".to_owned()))?;
        let top_k = self.num_experts_per_tok;
        if !(1..=count).contains(&top_k) {
            let expected = format!("it must be 1 to the number of experts, {count}");
            return Err(("num_experts_per_tok", top_k.to_string(), expected));
        }
        let order = match architecture {
            Granite => Order::TopKThenSoftmax,
            _ => Order::SoftmaxThenTopK,
        };
        let mut router = Router::new(count, top_k, order);
        router.renormalize = match architecture {
            Mixtral => true,
            Granite => false,
            _ => self.norm_topk_prob.unwrap_or(false),
        };
        router.scale = match self.residual_multiplier {
            Some(multiplier) if architecture == Granite => multiplier,
            _ => 1.0,
        };
        let inner = match architecture {
            Qwen2 | Qwen3 => self.moe_intermediate_size.unwrap_or(self.intermediate_size),
            _ => self.intermediate_size,
        };
        let shared_inner = match architecture {
            Qwen2 => self.shared_expert_intermediate_size,
            Granite => self.shared_intermediate_size,
            _ => None,
        };
        Ok(Experts { router, inner, shared_inner: shared_inner.unwrap_or(0) })
    }

    /// Returns for each block whether it has no experts.
    fn dense(&self, architecture: Architecture) -> Vec<bool> {
        let blocks = 0..self.num_hidden_layers;
        if !matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3) {
            return blocks.map(|_| false).collect();
        }
        let step = self.decoder_sparse_step.unwrap_or(1).max(1);
        let only = self.mlp_only_layers.as_deref().unwrap_or_default();
        blocks.map(|block| only.contains(&block) || !(block + 1).is_multiple_of(step)).collect()
    }
}

/// Returns the factor on scores that keeps them from growing with the width of heads.
pub(super) fn inverse_root(head_width: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "widths of heads are small")]
    let width = head_width as f32;
    width.sqrt().recip()
}
