//! Dialects: what distinguishes the decoders of transformers from one another, one constant each.
//!
//! A new decoder of the family is a constant here and its place in [`ALL`].

use crate::{arch::nonlinearity::Nonlinearity, module::Order};

/// Computation and tensor names of an architecture, where decoders differ.
#[derive(Debug, PartialEq)]
pub(crate) struct Dialect {
    /// Values of `model_type` in `config.json`.
    pub(super) model_types: &'static [&'static str],
    /// Epsilon of the norms if the configuration has none.
    pub(super) epsilon: f32,
    /// Base of the rotations' wavelengths if the configuration has none.
    pub(super) theta: f64,
    /// Normalization of queries and keys.
    pub(super) norms: Norms,
    /// Biases of the attention's projections.
    pub(super) biases: Biases,
    /// Whether `sliding_window` bounds attention.
    pub(super) has_window: bool,
    /// Number of tokens that each token sees if the configuration does not have `sliding_window`;
    /// `None` for all tokens before it.
    pub(super) window: Option<usize>,
    /// Width of heads if the configuration has none; `None` for the width of hidden states by the
    /// number of heads.
    pub(super) head_width: Option<usize>,
    /// Whether `clip_qkv` bounds queries, keys and values.
    pub(super) has_clip: bool,
    /// Number of heads of keys and values if the configuration has none; `None` for that of heads.
    pub(super) num_shared_heads: Option<usize>,
    /// Whether embeddings, residuals, scores and logits have multipliers.
    pub(super) has_multipliers: bool,
    /// Whether embeddings are multiplied by the root of their width.
    pub(super) has_scaled_embeddings: bool,
    /// Nonlinearity of the feed-forward parts.
    pub(super) nonlinearity: Nonlinearity,
    /// Norms of a sub-layer.
    pub(super) sub_layer_norms: SubLayerNorms,
    /// Whether factors of norms are larger by 1 than the checkpoint has them.
    pub(super) are_factors_raised: bool,
    /// Whether some blocks have the window and others do not, each kind with its own positions.
    pub(super) has_layer_kinds: bool,
    /// Whether the head is tied if the configuration does not say it.
    pub(super) is_tied: bool,
    /// Experts, or `None` if every block has one feed-forward part.
    pub(super) experts: Option<ExpertDialect>,
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

/// Norms of a sub-layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubLayerNorms {
    /// A norm of the input.
    Before,
    /// A norm of the input, and one of the output before the residual is added.
    Around,
}

/// Biases of the attention's projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    /// No biases.
    None,
    /// Biases of all four projections if `attention_bias` is set.
    Configured,
    /// Biases of queries, keys and values.
    QueriesKeysValues,
    /// Biases of queries, keys and values unless `qkv_bias` is false.
    UnlessDisabled,
}

/// Experts of an architecture.
#[derive(Debug, PartialEq)]
pub(super) struct ExpertDialect {
    /// Key of the number of experts; the other of the two known keys is read if it is missing.
    pub(super) count: CountKey,
    /// Name of the router's matrix as published, and as transformers 5 writes it.
    pub(super) router: [&'static str; 2],
    /// Names of the experts' matrices as published.
    pub(super) names: ExpertNames,
    /// Order of normalizing and choosing.
    pub(super) order: Order,
    /// Whether the weights of the chosen experts are scaled to add up to 1.
    pub(super) renormalize: Renormalize,
    /// Whether `moe_intermediate_size` is the number of an expert's hidden units.
    pub(super) has_own_size: bool,
    /// Experts that all tokens share.
    pub(super) shared: Shared,
    /// Whether `decoder_sparse_step` and `mlp_only_layers` name blocks without experts.
    pub(super) has_dense_blocks: bool,
}

/// Key of the number of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CountKey {
    /// `num_local_experts`.
    Local,
    /// `num_experts`.
    Global,
}

/// Names of the experts' matrices in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpertNames {
    /// Three tensors for each expert: the prefix before its number, and the suffixes for gate, up
    /// and down.
    Single(&'static str, [&'static str; 3]),
    /// Two tensors for all experts: one with every gate and up matrix, one with every down matrix.
    Fused([&'static str; 2]),
}

/// Rule by which the weights of the chosen experts are scaled to add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Renormalize {
    /// They always are.
    Always,
    /// They never are.
    Never,
    /// They are if `norm_topk_prob` is set.
    Configured,
}

/// Experts that all tokens share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    /// There are none.
    None,
    /// One part with a gate of its own, of `shared_expert_intermediate_size` units.
    Gated(&'static str),
    /// One part whose gate and up matrices are one tensor, of `shared_intermediate_size` units.
    Fused([&'static str; 2]),
}

/// Experts with three matrices each, which the others vary.
const EXPERTS: ExpertDialect = ExpertDialect {
    count: CountKey::Global,
    router: ["mlp.gate", "mlp.gate"],
    names: ExpertNames::Single(
        "mlp.experts.",
        ["gate_proj.weight", "up_proj.weight", "down_proj.weight"],
    ),
    order: Order::SoftmaxThenTopK,
    renormalize: Renormalize::Configured,
    has_own_size: false,
    shared: Shared::None,
    has_dense_blocks: false,
};

/// Llama (Touvron et al. 2023), which the others vary.
pub(super) const LLAMA: Dialect = Dialect {
    model_types: &["llama"],
    epsilon: 1e-6,
    theta: 1e4,
    norms: Norms::None,
    biases: Biases::Configured,
    has_window: false,
    window: None,
    head_width: None,
    has_clip: false,
    num_shared_heads: None,
    has_multipliers: false,
    has_scaled_embeddings: false,
    nonlinearity: Nonlinearity::Silu,
    sub_layer_norms: SubLayerNorms::Before,
    are_factors_raised: false,
    has_layer_kinds: false,
    is_tied: false,
    experts: None,
};

/// Mistral (Jiang et al. 2023).
const MISTRAL: Dialect = Dialect {
    model_types: &["mistral"],
    biases: Biases::None,
    has_window: true,
    window: Some(4_096),
    ..LLAMA
};

/// Qwen2 (Yang et al. 2024), and Qwen2.5.
const QWEN2: Dialect =
    Dialect { model_types: &["qwen2"], biases: Biases::QueriesKeysValues, ..LLAMA };

/// Qwen3 (Yang et al. 2025).
const QWEN3: Dialect =
    Dialect { model_types: &["qwen3"], norms: Norms::Heads, head_width: Some(128), ..LLAMA };

/// Text models of Gemma 3 (Gemma Team 2025).
const GEMMA3: Dialect = Dialect {
    model_types: &["gemma3_text"],
    theta: 1e6,
    norms: Norms::Heads,
    has_window: true,
    window: Some(4_096),
    head_width: Some(256),
    num_shared_heads: Some(4),
    has_scaled_embeddings: true,
    nonlinearity: Nonlinearity::GeluTanh,
    sub_layer_norms: SubLayerNorms::Around,
    are_factors_raised: true,
    has_layer_kinds: true,
    is_tied: true,
    ..LLAMA
};

/// Mixtral (Jiang et al. 2024).
const MIXTRAL: Dialect = Dialect {
    model_types: &["mixtral"],
    epsilon: 1e-5,
    theta: 1e6,
    biases: Biases::None,
    has_window: true,
    experts: Some(ExpertDialect {
        count: CountKey::Local,
        router: ["block_sparse_moe.gate", "mlp.gate"],
        names: ExpertNames::Single(
            "block_sparse_moe.experts.",
            ["w1.weight", "w3.weight", "w2.weight"],
        ),
        renormalize: Renormalize::Always,
        ..EXPERTS
    }),
    ..LLAMA
};

/// OLMoE (Muennighoff et al. 2024).
const OLMOE: Dialect = Dialect {
    model_types: &["olmoe"],
    epsilon: 1e-5,
    norms: Norms::Whole,
    has_clip: true,
    experts: Some(EXPERTS),
    ..LLAMA
};

/// Qwen1.5-MoE and Qwen2-MoE.
const QWEN2_MOE: Dialect = Dialect {
    model_types: &["qwen2_moe"],
    biases: Biases::UnlessDisabled,
    experts: Some(ExpertDialect {
        has_own_size: true,
        shared: Shared::Gated("mlp.shared_expert"),
        has_dense_blocks: true,
        ..EXPERTS
    }),
    ..LLAMA
};

/// Qwen3-MoE.
const QWEN3_MOE: Dialect = Dialect {
    model_types: &["qwen3_moe"],
    norms: Norms::Heads,
    experts: Some(ExpertDialect { has_own_size: true, has_dense_blocks: true, ..EXPERTS }),
    ..LLAMA
};

/// GraniteMoE, with or without shared experts.
const GRANITE_MOE: Dialect = Dialect {
    model_types: &["granitemoe", "granitemoeshared"],
    has_multipliers: true,
    experts: Some(ExpertDialect {
        count: CountKey::Local,
        router: ["block_sparse_moe.router.layer", "block_sparse_moe.router"],
        names: ExpertNames::Fused([
            "block_sparse_moe.input_linear.weight",
            "block_sparse_moe.output_linear.weight",
        ]),
        order: Order::TopKThenSoftmax,
        renormalize: Renormalize::Never,
        shared: Shared::Fused(["shared_mlp.input_linear", "shared_mlp.output_linear"]),
        ..EXPERTS
    }),
    ..LLAMA
};

/// Known dialects.
static ALL: [Dialect; 10] =
    [LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE, GRANITE_MOE];

/// Returns the dialect for a configuration's `model_type`, or `None` if it is not supported.
pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Dialect> {
    ALL.iter().find(|dialect| dialect.model_types.contains(&model_type))
}
