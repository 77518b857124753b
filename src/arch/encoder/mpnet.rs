//! MPNet encoders from Hugging Face checkpoints (`model_type = "mpnet"`; Song et al. 2020).
//!
//! They have BERT's blocks without token types. Token positions start after the padding's position.
//! Attention uses the distance between tokens as T5 does.

use serde::Deserialize;

use super::{Encoder, Names, Shape, nonlinearity, sentence::Sentence};
use crate::{
    arch::{
        error::ArchError,
        keys::{ConfigFile, Keys, TRANSFORMERS},
    },
    family::Fault,
    pool::Checkpoint,
};

/// MPNet's tensor names of an attention sub-layer.
const NAMES: Names =
    Names { projections: ["attn.q", "attn.k", "attn.v"], output: "attn.o", norm: "LayerNorm" };

/// Position of the first token; position 0 is unused and 1 is the padding's.
const FIRST_POSITION: usize = 2;

/// Keys of `config.json` that affect the network.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    relative_attention_num_buckets: usize,
    layer_norm_eps: f32,
    hidden_act: String,
}

/// Keys of `config.json` beside those of every configuration.
const KEYS: Keys = Keys {
    honoured: &[
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "relative_attention_num_buckets",
        "vocab_size",
    ],
    only: &[],
    ignored: &[("there is no head on the vocabulary", &["tie_word_embeddings"])],
};

/// Reads the configuration `file`, and finds the tensors in `checkpoint`. `sentence` is the head.
///
/// # Errors
///
/// Fails on a configuration that is not supported.
pub(crate) fn open(
    file: ConfigFile<'_>,
    checkpoint: &Checkpoint,
    sentence: Sentence,
) -> Result<Encoder, ArchError> {
    let config: Config = file.read(&[TRANSFORMERS, KEYS])?;
    let num_buckets = config.relative_attention_num_buckets;
    if num_buckets < 4 || !num_buckets.is_multiple_of(4) {
        let expected = "a multiple of 4 is supported";
        let fault = Fault::new("relative_attention_num_buckets", num_buckets, expected);
        return Err(file.refuse(fault));
    }
    let shape = Shape {
        width: config.hidden_size,
        inner_width: config.intermediate_size,
        num_blocks: config.num_hidden_layers,
        num_heads: config.num_attention_heads,
        num_words: config.vocab_size,
        num_positions: config.max_position_embeddings,
        first_position: FIRST_POSITION,
        num_token_types: 0,
        num_buckets,
        epsilon: config.layer_norm_eps,
        nonlinearity: nonlinearity(file, &config.hidden_act)?,
    };
    shape.validate(file)?;
    let is_prefixed = checkpoint.has("mpnet.embeddings.word_embeddings.weight");
    let prefix = if is_prefixed { "mpnet." } else { "" };
    Ok(Encoder::new(shape, NAMES, checkpoint.part(prefix), sentence))
}
