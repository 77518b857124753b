//! BERT encoders from Hugging Face checkpoints (`model_type = "bert"`).

use std::path::Path;

use serde::Deserialize;

use super::{Encoder, Names, Shape};
use crate::{
    arch::error::ArchError,
    family::Fault,
    pool::{Checkpoint, parse_json},
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
    #[serde(default = "absolute")]
    position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".into()
}

/// Reads `config`, the text of `config_path`, and finds the tensors in `checkpoint`.
///
/// # Errors
///
/// Fails on a configuration that is not supported.
pub(crate) fn open(
    config_path: &Path,
    config: &str,
    checkpoint: Checkpoint,
) -> Result<Encoder, ArchError> {
    let config: Config = parse_json(config_path, config)?;
    if config.position_embedding_type != "absolute" {
        let found = config.position_embedding_type;
        let fault = Fault::new("position_embedding_type", found, "`absolute` is supported");
        return Err(ArchError::Config { path: config_path.to_owned(), fault });
    }
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
        activation: config.hidden_act,
    };
    shape.validate(config_path.to_owned())?;
    let is_prefixed = checkpoint.has("bert.embeddings.word_embeddings.weight");
    let prefix = if is_prefixed { "bert." } else { "" };
    Ok(Encoder::new(shape, NAMES, checkpoint, prefix))
}
