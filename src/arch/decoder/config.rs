//! Configurations of decoders, from `config.json` with the keys of transformers 4 and 5.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    dialects::{
        Biases, CountKey, Dialect, ExpertDialect, Norms, Renormalize, Shared, SubLayerNorms,
    },
    gemma::{self, Layer, Layers},
    rope::{Defaults, Rope},
};
use crate::{
    arch::{
        error::ArchError,
        keys::{ConfigFile, Keys, TRANSFORMERS},
        nonlinearity::Nonlinearity,
    },
    family::Fault,
    module::Router,
};

/// Sizes of a decoder, and the computation of its layers.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Width of a hidden state.
    pub(super) width: usize,
    /// Number of token ids.
    pub(super) num_words: usize,
    /// Maximum number of tokens that the decoder was made for, or `None` if it is not known.
    pub(super) max_tokens: Option<usize>,
    /// Epsilon of the norms.
    pub(super) epsilon: f32,
    /// Whether factors of norms are larger by 1 than the checkpoint has them.
    pub(super) are_factors_raised: bool,
    /// Norms of a sub-layer.
    pub(super) sub_layer_norms: SubLayerNorms,
    /// Nonlinearity of the feed-forward parts.
    pub(super) nonlinearity: Nonlinearity,
    /// Attention of each block.
    pub(super) attention: Vec<Attention>,
    /// Experts of every block that has experts, or `None` if no block has any.
    pub(super) experts: Option<Experts>,
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

/// Settings of an attention sub-layer.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    /// Number of query heads.
    pub(super) num_heads: usize,
    /// Number of key and value heads, each of which several query heads share.
    pub(super) num_shared_heads: usize,
    /// Width of a head.
    pub(super) head_width: usize,
    /// Factor on scores.
    pub(super) scale: f32,
    /// Angles of rotary positions.
    pub(super) rope: Rope,
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
    /// Whether a head's neighbouring elements turn together, as in GGUF files of Llama. Otherwise
    /// an element of the first half turns with one of the second.
    pub(super) is_interleaved: bool,
}

/// Experts of a block.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    /// Names and computation of the architecture's experts.
    pub(super) dialect: &'static ExpertDialect,
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
    num_experts_per_tok: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f32>,
    max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Map<String, Value>>,
    rope_scaling: Option<Map<String, Value>>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
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

/// Keys of `config.json` beside those of every configuration.
const KEYS: Keys = Keys {
    honoured: &[
        "attention_bias",
        "attention_multiplier",
        "clip_qkv",
        "decoder_sparse_step",
        "embedding_multiplier",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "logits_scaling",
        "max_position_embeddings",
        "mlp_only_layers",
        "moe_intermediate_size",
        "norm_topk_prob",
        "num_attention_heads",
        "num_experts",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_local_experts",
        "qkv_bias",
        "residual_multiplier",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "sliding_window",
        "tie_word_embeddings",
        "use_sliding_window",
        "vocab_size",
    ],
    only: &[
        ("hidden_act", &["\"silu\"", "\"swish\""]),
        // SmolLM's files have both.
        ("is_llama_config", &["true"]),
        ("mlp_bias", &["false"]),
        ("rope_interleaved", &["false"]),
    ],
    ignored: &[(
        "only windows of attention read it, and `layer_types` says them",
        &["max_window_layers"],
    )],
};

/// Reads the configuration `file` of a decoder of `dialect`.
///
/// # Errors
///
/// Fails on a configuration that is malformed, contradicts itself or is not supported.
pub(super) fn read(file: ConfigFile<'_>, dialect: &'static Dialect) -> Result<Shape, ArchError> {
    let keys = if dialect.has_layer_kinds { gemma::KEYS } else { KEYS };
    let mut config: Config = file.read(&[TRANSFORMERS, keys])?;
    // A window that is `null` is none, and one that is not there is the dialect's.
    if dialect.window.is_some() && !file.has("sliding_window")? {
        config.sliding_window = dialect.window;
    }
    config.check_sizes(dialect).map_err(|fault| file.refuse(fault))?;
    let layers = match dialect.has_layer_kinds {
        true => Layers::read(file, dialect.theta)?,
        false => Layers::same(&config.rope(file, dialect)?, config.num_hidden_layers),
    };
    config.shape(dialect, &layers).map_err(|fault| file.refuse(fault))
}

impl Config {
    fn shape(&self, dialect: &'static Dialect, layers: &Layers) -> Result<Shape, Fault> {
        // Only Granite's code reads the multipliers.
        let multiplier =
            |value: Option<f32>| value.filter(|_| dialect.has_multipliers).unwrap_or(1.0);
        Ok(Shape {
            width: self.hidden_size,
            num_words: self.vocab_size,
            max_tokens: self.max_position_embeddings,
            epsilon: self.rms_norm_eps.unwrap_or(dialect.epsilon),
            are_factors_raised: dialect.are_factors_raised,
            sub_layer_norms: dialect.sub_layer_norms,
            nonlinearity: dialect.nonlinearity,
            attention: self.attention(dialect, layers)?,
            experts: dialect.experts.as_ref().map(|own| self.experts(dialect, own)).transpose()?,
            dense: self.dense(dialect),
            dense_inner: self.intermediate_size,
            embedding_multiplier: match dialect.has_scaled_embeddings {
                true => root(self.hidden_size),
                false => multiplier(self.embedding_multiplier),
            },
            residual_multiplier: multiplier(self.residual_multiplier),
            logits_divisor: multiplier(self.logits_scaling),
            is_tied: self.tie_word_embeddings.unwrap_or(dialect.is_tied),
        })
    }

    fn check_sizes(&self, dialect: &Dialect) -> Result<(), Fault> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("vocab_size", self.vocab_size),
        ];
        if let Some((key, value)) = sizes.into_iter().find(|(_, value)| *value == 0) {
            return Err(Fault::new(key, value, "at least 1 is needed"));
        }
        if !(1..=1_000).contains(&self.num_hidden_layers) {
            let found = self.num_hidden_layers;
            return Err(Fault::new("num_hidden_layers", found, "1 to 1000 is supported"));
        }
        if let Some(value) = self.logits_scaling.filter(|value| !value.is_normal()) {
            return Err(Fault::new("logits_scaling", value, "a number other than 0 is needed"));
        }
        let types = self.layer_types.iter().flatten().filter(|_| !dialect.has_layer_kinds);
        if let Some(other) = types.into_iter().find(|name| *name != "full_attention") {
            return Err(Fault::new("layer_types", other, "`full_attention` is supported"));
        }
        Ok(())
    }

    /// Returns the attention of each block.
    fn attention(&self, dialect: &Dialect, layers: &Layers) -> Result<Vec<Attention>, Fault> {
        let num_heads = self.num_attention_heads;
        let num_shared_heads = self.num_key_value_heads.or(dialect.num_shared_heads);
        let num_shared_heads = num_shared_heads.unwrap_or(num_heads);
        if num_shared_heads == 0 || !num_heads.is_multiple_of(num_shared_heads) {
            let expected = format!("it must divide num_attention_heads, {num_heads}");
            return Err(Fault::new("num_key_value_heads", num_shared_heads, expected));
        }
        let head_width = self.head_dim.or(dialect.head_width);
        let head_width = head_width.unwrap_or(self.hidden_size / num_heads);
        if head_width == 0 || !head_width.is_multiple_of(2) {
            let expected = "halves of heads are turned, so an even number is needed; without the \
                            key, it is hidden_size by num_attention_heads";
            return Err(Fault::new("head_dim", head_width, expected));
        }
        let is_windowed = self.use_sliding_window == Some(true);
        if is_windowed && !dialect.has_window {
            let expected = "a window is supported for `mistral` and `mixtral`";
            return Err(Fault::new("use_sliding_window", true, expected));
        }
        let is_biased = self.attention_bias.unwrap_or(false);
        let window = self.sliding_window.filter(|_| dialect.has_window);
        let attention = |layer: &Layer| Attention {
            num_heads,
            num_shared_heads,
            head_width,
            scale: match dialect.has_multipliers {
                true => self.attention_multiplier.unwrap_or(1.0),
                false => layers.scale.unwrap_or_else(|| inverse_root(head_width)),
            },
            rope: layer.rope.clone(),
            has_biases: match dialect.biases {
                Biases::None => false,
                Biases::Configured => is_biased,
                Biases::QueriesKeysValues => true,
                Biases::UnlessDisabled => self.qkv_bias.unwrap_or(true),
            },
            has_output_bias: is_biased && dialect.biases == Biases::Configured,
            norms: dialect.norms,
            clip: self.clip_qkv.filter(|_| dialect.has_clip),
            window: window.filter(|_| layer.has_window),
            is_interleaved: false,
        };
        Ok(layers.blocks.iter().map(attention).collect())
    }

    /// Returns the angles of rotary positions, which `file` has under its earlier key or its own.
    fn rope(&self, file: ConfigFile<'_>, dialect: &Dialect) -> Result<Rope, ArchError> {
        let ropes =
            [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)];
        let filled = |(key, rope): (&'static str, _)| Some((key, Option::as_ref(rope)?));
        let found = ropes.into_iter().filter_map(filled).find(|(_, rope)| !rope.is_empty());
        let defaults = Defaults {
            theta: self.rope_theta.unwrap_or(dialect.theta),
            max_tokens: self.max_position_embeddings,
        };
        Rope::read(file, found, defaults)
    }

    fn experts(&self, dialect: &Dialect, own: &'static ExpertDialect) -> Result<Experts, Fault> {
        let (key, given) = match own.count {
            CountKey::Local => ("num_local_experts", self.num_local_experts.or(self.num_experts)),
            CountKey::Global => ("num_experts", self.num_experts.or(self.num_local_experts)),
        };
        let count = given.filter(|count| *count > 0);
        let expected = "at least 1 is needed here, or under `num_experts` or `num_local_experts`";
        let count = count.ok_or_else(|| Fault::new(key, 0, expected))?;
        let top_k = self.num_experts_per_tok.unwrap_or(0);
        if !(1..=count).contains(&top_k) {
            let expected = format!("it must be 1 to the number of experts, {count}");
            return Err(Fault::new("num_experts_per_tok", top_k, expected));
        }
        let mut router = Router::new(count, top_k, own.order);
        router.renormalize = match own.renormalize {
            Renormalize::Always => true,
            Renormalize::Never => false,
            Renormalize::Configured => self.norm_topk_prob.unwrap_or(false),
        };
        router.scale = match self.residual_multiplier {
            Some(multiplier) if dialect.has_multipliers => multiplier,
            _ => 1.0,
        };
        let inner = match own.has_own_size {
            true => self.moe_intermediate_size.unwrap_or(self.intermediate_size),
            false => self.intermediate_size,
        };
        let key = "shared_expert_intermediate_size";
        let shared_inner = match own.shared {
            Shared::None => 0,
            Shared::Gated(_) => self
                .shared_expert_intermediate_size
                .ok_or_else(|| Fault::new(key, "missing", "a number is needed"))?,
            Shared::Fused(_) => self.shared_intermediate_size.unwrap_or(0),
        };
        Ok(Experts { dialect: own, router, inner, shared_inner })
    }

    /// Returns for each block whether it has no experts.
    fn dense(&self, dialect: &Dialect) -> Vec<bool> {
        let blocks = 0..self.num_hidden_layers;
        match &dialect.experts {
            None => blocks.map(|_| true).collect(),
            Some(experts) if !experts.has_dense_blocks => blocks.map(|_| false).collect(),
            Some(_) => {
                let step = self.decoder_sparse_step.unwrap_or(1).max(1);
                let only = self.mlp_only_layers.as_deref().unwrap_or_default();
                let is_dense = |block| only.contains(&block) || !(block + 1).is_multiple_of(step);
                blocks.map(is_dense).collect()
            }
        }
    }
}

/// Returns the factor on scores that keeps them from growing with the width of heads.
pub(super) fn inverse_root(head_width: usize) -> f32 {
    root(head_width).recip()
}

/// Returns the root of the width of heads or of hidden states.
fn root(width: usize) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "widths are small")]
    let width = width as f32;
    width.sqrt()
}
