//! BERT encoders from Hugging Face checkpoints (`model_type = "bert"`).
//!
//! Post-norm blocks (Devlin et al. 2019, section 3): `h = norm(x + attention(x))`, then
//! `norm(h + mlp(h))`. Each sub-layer is a module of its own, so that one of them can be dropped or
//! quantized apart.

use std::path::Path;

use serde::Deserialize;

use super::{
    ArchError, Checkpoint,
    fitted::Expansion,
    network::{
        ATTENTION_MASK, INPUT_IDS, Network, Precision, extent, float_weight, linear, token_input,
        with_hidden,
    },
};
use crate::onnx::{Attribute, GraphBuilder, proto::data_type};

/// The keys of `config.json` that matter here; others are the library's own business.
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

/// A BERT encoder.
#[derive(Debug)]
pub(super) struct Bert {
    config: Config,
    checkpoint: Checkpoint,
    prefix: &'static str,
}

impl Bert {
    /// Reads `config`, the text of `config_path`, and finds the tensors in `checkpoint`.
    ///
    /// # Errors
    ///
    /// Fails on a configuration that is not supported.
    pub(super) fn new(
        config_path: &Path,
        config: &str,
        checkpoint: Checkpoint,
    ) -> Result<Self, ArchError> {
        let config: Config = serde_json::from_str(config).map_err(|e| ArchError::Malformed {
            path: config_path.to_owned(),
            message: e.to_string(),
        })?;
        config.validate(config_path)?;
        let prefix =
            if checkpoint.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        Ok(Self { config, checkpoint, prefix })
    }

    /// Returns the number of blocks.
    pub(super) fn num_blocks(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// Returns the extent of a hidden state.
    pub(super) fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Returns the most tokens that the encoder has positions for.
    pub(super) fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Builds the embeddings: token ids to hidden states.
    ///
    /// # Shapes
    ///
    /// - input_ids: \[batch, tokens\]
    /// - output: \[batch, tokens, width\]
    pub(super) fn stem(&self) -> Result<Network, ArchError> {
        let config = &self.config;
        let width = config.hidden_size;
        let table = |name: &str, rows: usize| {
            self.weight(&format!("embeddings.{name}_embeddings.weight"), &[rows, width])
        };
        let mut graph = GraphBuilder::default();
        let ids = token_input(&mut graph, INPUT_IDS);
        let words = float_weight(&mut graph, table("word", config.vocab_size)?);
        let words = graph.node("Gather", &[&words, &ids], &[]);
        let shape = graph.node(
            "Shape",
            &[&ids],
            &[("start", Attribute::Int(1)), ("end", Attribute::Int(2))],
        );
        let (zero, first) = (graph.ints(&[0]), graph.int(0));
        let positions = table("position", config.max_position_embeddings)?;
        let positions = float_weight(&mut graph, positions);
        let positions = graph.node("Slice", &[&positions, &zero, &shape, &zero], &[]);
        let types = float_weight(&mut graph, table("token_type", config.type_vocab_size)?);
        let types = graph.node("Gather", &[&types, &first], &[]);
        let sum = graph.node("Add", &[&words, &types], &[]);
        let sum = graph.node("Add", &[&sum, &positions], &[]);
        let gamma = self.weight("embeddings.LayerNorm.weight", &[width])?;
        let beta = self.weight("embeddings.LayerNorm.bias", &[width])?;
        let (gamma, beta) = (float_weight(&mut graph, gamma), float_weight(&mut graph, beta));
        let epsilon = Attribute::Float(config.layer_norm_eps);
        let normed = graph.node(
            "LayerNormalization",
            &[&sum, &gamma, &beta],
            &[("axis", Attribute::Int(-1)), ("epsilon", epsilon)],
        );
        Ok(self.network(graph, &normed, Precision::F32))
    }

    /// Builds the attention sub-layer of block `index` with its residual and norm.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    /// - attention_mask: \[batch, tokens\]
    pub(super) fn attention(
        &self,
        index: usize,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let width = self.config.hidden_size;
        let layer = format!("encoder.layer.{index}.attention");
        let (mut graph, hidden) = with_hidden(width);
        let mask = token_input(&mut graph, ATTENTION_MASK);
        let mask =
            graph.node("Cast", &[&mask], &[("to", Attribute::Int(i64::from(data_type::INT32)))]);
        let mut projected = Vec::new();
        let mut biases = Vec::new();
        for part in ["query", "key", "value"] {
            let weight = self.weight(&format!("{layer}.self.{part}.weight"), &[width, width])?;
            projected.push(linear(&mut graph, &hidden, weight));
            let bias = self.weight(&format!("{layer}.self.{part}.bias"), &[width])?;
            biases.push(float_weight(&mut graph, bias));
        }
        let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
        let bias = graph.node("Concat", &biases, &[("axis", Attribute::Int(0))]);
        let heads = i64::try_from(self.config.num_attention_heads).unwrap_or(i64::MAX);
        let context = graph.fused(
            "MultiHeadAttention",
            &[&projected[0], &projected[1], &projected[2], &bias, &mask],
            &[("num_heads", Attribute::Int(heads))],
        );
        let weight = self.weight(&format!("{layer}.output.dense.weight"), &[width, width])?;
        let output = linear(&mut graph, &context, weight);
        self.end_sub_layer(graph, &[&output, &hidden], &format!("{layer}.output"), precision)
    }

    /// Returns the expanding half of block `index`'s feed-forward sub-layer.
    pub(super) fn expansion(&self, index: usize) -> Result<Expansion, ArchError> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let dense = format!("encoder.layer.{index}.intermediate.dense");
        Ok(Expansion {
            weight: self.weight(&format!("{dense}.weight"), &[inner, width])?,
            bias: self.weight(&format!("{dense}.bias"), &[inner])?,
            activation: if self.config.hidden_act == "gelu" { "BiasGelu" } else { "FastGelu" },
        })
    }

    /// Builds the feed-forward sub-layer of block `index` with its residual and norm.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    pub(super) fn mlp(&self, index: usize, precision: Precision) -> Result<Network, ArchError> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let layer = format!("encoder.layer.{index}");
        let (mut graph, hidden) = with_hidden(width);
        let expansion = self.expansion(index)?;
        let expanded = linear(&mut graph, &hidden, expansion.weight);
        let bias = float_weight(&mut graph, expansion.bias);
        let expanded = graph.fused(expansion.activation, &[&expanded, &bias], &[]);
        let weight = self.weight(&format!("{layer}.output.dense.weight"), &[width, inner])?;
        let output = linear(&mut graph, &expanded, weight);
        self.end_sub_layer(graph, &[&output, &hidden], &format!("{layer}.output"), precision)
    }

    /// Adds `layer`'s output bias, the residual and the norm: `norm(output + bias + hidden)`.
    fn end_sub_layer(
        &self,
        mut graph: GraphBuilder,
        [output, hidden]: &[&str; 2],
        layer: &str,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let width = self.config.hidden_size;
        let mut vector = |name: &str| -> Result<String, ArchError> {
            let weight = self.weight(&format!("{layer}.{name}"), &[width])?;
            Ok(float_weight(&mut graph, weight))
        };
        let gamma = vector("LayerNorm.weight")?;
        let beta = vector("LayerNorm.bias")?;
        let bias = vector("dense.bias")?;
        let normed = graph.fused(
            "SkipLayerNormalization",
            &[output, hidden, &gamma, &beta, &bias],
            &[("epsilon", Attribute::Float(self.config.layer_norm_eps))],
        );
        Ok(self.network(graph, &normed, precision))
    }

    fn network(&self, graph: GraphBuilder, value: &str, precision: Precision) -> Network {
        let shape = [None, None, extent(self.config.hidden_size)];
        Network::new(graph.finish(value, "output", &shape), precision)
    }

    fn weight(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<crate::onnx::proto::TensorProto, ArchError> {
        self.checkpoint.weight(&format!("{}{name}", self.prefix), shape)
    }
}

impl Config {
    fn validate(&self, path: &Path) -> Result<(), ArchError> {
        let refuse = |key: &str, value: String, expected: &str| {
            Err(ArchError::Config {
                path: path.to_owned(),
                key: key.into(),
                value,
                expected: expected.into(),
            })
        };
        if !matches!(self.hidden_act.as_str(), "gelu" | "gelu_new") {
            let expected = "`gelu` and `gelu_new` are supported";
            return refuse("hidden_act", self.hidden_act.clone(), expected);
        }
        if self.position_embedding_type != "absolute" {
            let value = self.position_embedding_type.clone();
            return refuse("position_embedding_type", value, "`absolute` is supported");
        }
        let heads = self.num_attention_heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            return refuse("num_attention_heads", heads.to_string(), "it must divide hidden_size");
        }
        if self.num_hidden_layers == 0 || self.num_hidden_layers > 1_000 {
            let value = self.num_hidden_layers.to_string();
            return refuse("num_hidden_layers", value, "1 to 1000 is supported");
        }
        Ok(())
    }
}
