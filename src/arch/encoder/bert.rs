//! BERT encoders from Hugging Face checkpoints (`model_type = "bert"`).

use serde::Deserialize;

use super::{Encoder, Names, Shape, nonlinearity, sentence::Sentence};
use crate::{
    arch::{
        error::ArchError,
        keys::{ConfigFile, Keys, TRANSFORMERS},
    },
    pool::Checkpoint,
};

/// BERT's tensor names of an attention sub-layer.
const NAMES: Names = Names {
    projections: ["self.query", "self.key", "self.value"],
    output: "output.dense",
    norm: "output.LayerNorm",
};

/// Keys of `config.json` that affect the network.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
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
        "type_vocab_size",
        "vocab_size",
    ],
    only: &[("is_decoder", &["false"]), ("position_embedding_type", &["\"absolute\""])],
    ignored: &[
        (
            "they are about BERT's pooler, which embeddings do not use",
            &[
                "directionality",
                "pooler_fc_size",
                "pooler_num_attention_heads",
                "pooler_num_fc_layers",
                "pooler_size_per_head",
                "pooler_type",
            ],
        ),
        ("there is no head on the vocabulary", &["tie_word_embeddings"]),
    ],
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
    let shape = Shape {
        width: config.hidden_size,
        inner_width: config.intermediate_size,
        num_blocks: config.num_hidden_layers,
        num_heads: config.num_attention_heads,
        num_words: config.vocab_size,
        num_positions: config.max_position_embeddings,
        first_position: 0,
        num_token_types: config.type_vocab_size,
        num_buckets: 0,
        epsilon: config.layer_norm_eps,
        nonlinearity: nonlinearity(file, &config.hidden_act)?,
    };
    shape.validate(file)?;
    let is_prefixed = checkpoint.has("bert.embeddings.word_embeddings.weight");
    let prefix = if is_prefixed { "bert." } else { "" };
    Ok(Encoder::new(shape, NAMES, checkpoint.part(prefix), sentence))
}
