//! Names of tensors in GGUF files.

use super::Architecture;
use crate::{arch::ArchError, pool::GgufFile};

/// Name of the table of embeddings.
pub(super) const EMBEDDINGS: &str = "token_embd.weight";
/// Name of the head's matrix. Without it, the table of embeddings is the matrix.
pub(super) const HEAD: &str = "output.weight";
/// Name of the divisors of rotary positions' angles, in Llama from version 3.1 on. It is also their
/// name in the checkpoint.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Name of the bias of the first block's queries.
pub(super) const QUERY_BIAS: &str = "blk.0.attn_q.bias";

/// Tensors outside the blocks, and their names in transformers.
const OUTSIDE: [[&str; 2]; 3] = [
    [EMBEDDINGS, "model.embed_tokens.weight"],
    ["output_norm.weight", "model.norm.weight"],
    [HEAD, "lm_head.weight"],
];

/// Tensors of a block, and their names in transformers.
const INSIDE: [[&str; 2]; 13] = [
    ["attn_norm.weight", "input_layernorm.weight"],
    ["attn_q.weight", "self_attn.q_proj.weight"],
    ["attn_q.bias", "self_attn.q_proj.bias"],
    ["attn_k.weight", "self_attn.k_proj.weight"],
    ["attn_k.bias", "self_attn.k_proj.bias"],
    ["attn_v.weight", "self_attn.v_proj.weight"],
    ["attn_v.bias", "self_attn.v_proj.bias"],
    ["attn_output.weight", "self_attn.o_proj.weight"],
    ["attn_output.bias", "self_attn.o_proj.bias"],
    ["ffn_norm.weight", "post_attention_layernorm.weight"],
    ["ffn_gate.weight", "mlp.gate_proj.weight"],
    ["ffn_up.weight", "mlp.up_proj.weight"],
    ["ffn_down.weight", "mlp.down_proj.weight"],
];

/// Norms of Gemma 3 in a block, and their names in transformers.
const GEMMA: [[&str; 2]; 3] = [
    ["ffn_norm.weight", "pre_feedforward_layernorm.weight"],
    ["post_attention_norm.weight", "post_attention_layernorm.weight"],
    ["post_ffw_norm.weight", "post_feedforward_layernorm.weight"],
];

/// Router and experts of a block, and their names in transformers. Each matrix of all experts is
/// one tensor.
const EXPERTS: [[&str; 2]; 4] = [
    ["ffn_gate_inp.weight", "mlp.gate.weight"],
    ["ffn_gate_exps.weight", "mlp.experts.gate_proj"],
    ["ffn_up_exps.weight", "mlp.experts.up_proj"],
    ["ffn_down_exps.weight", "mlp.experts.down_proj"],
];

/// Expert of a block that all tokens share, and its names in transformers.
const SHARED: [[&str; 2]; 4] = [
    ["ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"],
    ["ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight"],
    ["ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight"],
    ["ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight"],
];

/// Norms of queries and keys in a block, and their names in transformers.
const HEAD_NORMS: [[&str; 2]; 2] = [
    ["attn_q_norm.weight", "self_attn.q_norm.weight"],
    ["attn_k_norm.weight", "self_attn.k_norm.weight"],
];

/// Description of the supported tensors, for errors.
const SUPPORTED: &str = "the tensors of `llama`, `qwen2`, `qwen3`, `gemma3`, `qwen2moe`, \
                         `qwen3moe` and `olmoe`, with the experts of a block in one tensor";

/// Checks that the name of every tensor is known, or in `ignored`.
///
/// # Errors
///
/// Fails on another name. Its tensor might change what the network computes.
pub(super) fn check(
    file: &GgufFile,
    architecture: Architecture,
    ignored: &[String],
) -> Result<(), ArchError> {
    let is_known = |name: &str| {
        ignored.iter().any(|ignored| ignored == name)
            || of_transformers(name, architecture).is_some()
    };
    match file.tensors().find(|(name, _)| !is_known(name)) {
        Some((name, _)) => Err(ArchError::UnknownTensor {
            path: file.path().to_owned(),
            name: name.to_owned(),
            architecture: SUPPORTED,
        }),
        None => Ok(()),
    }
}

/// Returns the name in transformers of the tensor `name`, or `None` if it is not known.
pub(super) fn of_transformers(name: &str, architecture: Architecture) -> Option<String> {
    let find = |pairs: &[[&'static str; 2]], name: &str| {
        pairs.iter().find(|[known, _]| *known == name).map(|[_, theirs]| *theirs)
    };
    if let Some(theirs) = find(&OUTSIDE, name) {
        return Some(theirs.to_owned());
    }
    if name == ROPE_DIVISORS && architecture.has_rope_divisors {
        return Some(name.to_owned());
    }
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let own = find(&GEMMA, part).filter(|_| architecture.is_gemma);
    let norm = || find(&HEAD_NORMS, part).filter(|_| architecture.has_head_norms);
    let experts = architecture.experts;
    let expert = || find(&EXPERTS, part).filter(|_| experts.is_some());
    let shared = || find(&SHARED, part).filter(|_| experts.is_some_and(|own| own.are_shared));
    let others = || norm().or_else(expert).or_else(shared);
    let theirs = own.or_else(|| find(&INSIDE, part)).or_else(others)?;
    Some(format!("model.layers.{block}.{theirs}"))
}
