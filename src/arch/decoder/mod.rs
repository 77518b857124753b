//! Decoders of transformers: Llama, Mistral, Qwen2, Qwen3 and Gemma 3, and Mixtral, OLMoE,
//! Qwen2-MoE, Qwen3-MoE and GraniteMoE with experts.
//!
//! A block computes `x + attention(norm(x))`, then `x + mlp(norm(x))`, with RMS norms (Zhang and
//! Sennrich 2019), where the second part may be experts. In Gemma 3, a sub-layer's output has a
//! norm as well. What distinguishes architectures is in
//! `dialects`; attention is in `attention`, experts are in `experts`. The head returns logits and
//! last hidden states of every token.

mod attention;
mod cached;
mod config;
pub(super) mod dialects;
mod experts;
mod gemma;
pub(super) mod moduleformer;
mod rope;

use super::{
    ArchError,
    backbone::{Backbone, Form},
    keys::ConfigFile,
    layout::{Axes, Layout, PartId, PartSpec, Reads},
    nonlinearity::Nonlinearity,
    ops::{extent, float_weight, linear, taken_weight, token_input, with_hidden, with_rows},
};
use crate::{
    family::{Fault, ModuleKind, SpaceSpec},
    module::{Body, CacheSpec, INPUT_IDS, Network, Precision},
    onnx::{
        Attribute, GraphBuilder,
        proto::{ModelProto, TensorProto},
    },
    pool::{Checkpoint, PoolError},
};
use config::Shape;
use dialects::{Dialect, SubLayerNorms};

/// Name of the head's matrix.
const HEAD: &str = "lm_head.weight";

/// Decoder whose weights lie in a checkpoint.
#[derive(Debug)]
pub(super) struct Decoder {
    shape: Shape,
    checkpoint: Checkpoint,
    layout: Layout,
}

/// Reads the configuration `file`, and finds the tensors in `checkpoint`.
///
/// # Errors
///
/// Fails on a configuration that is not supported.
pub(super) fn open(
    file: ConfigFile<'_>,
    dialect: &'static Dialect,
    checkpoint: Checkpoint,
) -> Result<Decoder, ArchError> {
    let shape = config::read(file, dialect)?;
    if shape.is_tied {
        check_tied(file, &checkpoint, "model.embed_tokens.weight")?;
    }
    let layout = layout(&shape);
    Ok(Decoder { shape, checkpoint, layout })
}

impl Decoder {
    /// Turns neighbouring elements of heads together, as the rows of a file's queries and keys are
    /// ordered.
    pub(super) fn with_interleaved_heads(mut self) -> Self {
        for attention in &mut self.shape.attention {
            attention.is_interleaved = true;
        }
        self
    }

    /// Divides the angles of rotary positions by the values of the tensor `name`, if there is one.
    ///
    /// # Errors
    ///
    /// Fails unless there is a number above 0 for each pair of a head's elements.
    pub(super) fn with_rope_divisors(mut self, name: &str) -> Result<Self, ArchError> {
        if !self.checkpoint.has(name) {
            return Ok(self);
        }
        // Heads have the same width in every block.
        let Some(first) = self.shape.attention.first() else { return Ok(self) };
        let divisors = self.checkpoint.finite_values(name, &[first.head_width / 2])?;
        if let Some(value) = divisors.iter().find(|value| **value <= 0.0) {
            let fault = Fault::new(name, value, "numbers above 0 are needed");
            return Err(ArchError::Config { path: self.checkpoint.path().into(), fault });
        }
        for attention in &mut self.shape.attention {
            attention.rope = attention.rope.clone().divided_by(divisors.clone());
        }
        Ok(self)
    }

    /// Takes the factors of norms as the checkpoint has them, as in GGUF files: where an
    /// architecture raises them by 1, the converter has done so.
    pub(super) fn with_norms_as_stored(mut self) -> Self {
        self.shape.are_factors_raised = false;
        self
    }
}

/// Checks that a matrix of a tied head, which the file may have as well, is the table `embeddings`.
///
/// transformers 4 replaces another matrix by the table, and transformers 5 keeps it.
fn check_tied(
    file: ConfigFile<'_>,
    checkpoint: &Checkpoint,
    embeddings: &str,
) -> Result<(), ArchError> {
    if !checkpoint.has(HEAD) || checkpoint.is_same(HEAD, embeddings)? {
        return Ok(());
    }
    let expected = format!("the checkpoint has a `{HEAD}` that differs from `{embeddings}`");
    Err(file.refuse(Fault::new("tie_word_embeddings", true, expected)))
}

/// Returns the layout of a decoder of `shape`.
fn layout(shape: &Shape) -> Layout {
    let reads = Reads::Tokens { num_words: Some(shape.num_words), max_tokens: shape.max_tokens };
    let hidden = SpaceSpec::of_extents(&[None, Some(shape.width)]);
    let blocks = shape.dense.iter().zip(&shape.attention).map(|(is_dense, attention)| {
        let experts = shape.experts.as_ref().filter(|_| !is_dense);
        let num_experts = experts.map(|experts| experts.router.num_ways);
        let mlp = Axes { num_experts, ..Axes::default() };
        let attention = Axes { cache: attention.cache(), ..Axes::default() };
        vec![(ModuleKind::Attention, attention), (ModuleKind::Mlp, mlp)]
    });
    Layout::uniform(reads, &hidden, token_scores(shape.num_words, shape.width), blocks)
}

/// Returns the output of a decoder's head: logits and last hidden states of each token.
pub(super) fn token_scores(num_words: usize, width: usize) -> SpaceSpec {
    SpaceSpec::of_extents(&[None, Some(num_words)]).with("states", &[None, Some(width)])
}

impl Backbone for Decoder {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError> {
        let PartSpec { kind, block, axes, .. } = self.layout.part(part);
        let block = block.unwrap_or_default();
        match (kind, &self.shape.experts) {
            (ModuleKind::Stem, _) => self.stem().map(Body::from),
            (ModuleKind::Head, _) => self.head(form).map(Body::from),
            (ModuleKind::Attention, _) => match axes.cache.filter(|_| form.is_step) {
                Some(cache) => {
                    let cache = CacheSpec { cache_type: form.cache_type, ..cache };
                    self.cached_attention(block, cache, form.precision)
                }
                None => self.attention(block, form.precision),
            }
            .map(Body::from),
            (_, Some(experts)) if !self.shape.dense[block] => {
                self.routed(block, experts, form).map(|routed| Body::Routed(Box::new(routed)))
            }
            _ => self.dense_part(block, form).map(Body::from),
        }
    }
}

impl Decoder {
    /// Builds the embeddings: token ids to hidden states.
    ///
    /// # Shapes
    ///
    /// - input_ids: \[batch, tokens\]
    /// - output: \[batch, tokens, width\]
    fn stem(&self) -> Result<Network, ArchError> {
        let mut graph = GraphBuilder::default();
        let ids = token_input(&mut graph, INPUT_IDS);
        let words = embedded(&mut graph, &ids, self.embeddings()?);
        let words = scaled(&mut graph, &words, self.shape.embedding_multiplier);
        Ok(self.network(graph, &words, Precision::F32))
    }

    /// Builds the logits and the last hidden states.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    /// - output: \[batch, tokens, words\]
    /// - states: \[batch, tokens, width\]
    fn head(&self, form: &Form<'_>) -> Result<Network, ArchError> {
        let Shape { num_words, width, logits_divisor, is_tied, .. } = self.shape;
        let (mut graph, hidden) = with_hidden(width);
        let states = match form.has_norm {
            true => self.norm(&mut graph, &hidden, "model.norm.weight", width)?,
            false => hidden,
        };
        let matrix = match is_tied {
            true => self.embeddings()?,
            false => self.weight(HEAD, &[num_words, width])?,
        };
        let logits = linear(&mut graph, &states, matrix);
        let logits = scaled(&mut graph, &logits, logits_divisor.recip());
        let model = finish_head(graph, [&logits, &states], [num_words, width]);
        Ok(Network::new(model, form.precision))
    }

    /// Builds the feed-forward part of a block without experts.
    fn dense_part(&self, index: usize, form: &Form<'_>) -> Result<Network, ArchError> {
        let Shape { width, dense_inner, sub_layer_norms, .. } = self.shape;
        let (mut graph, hidden) = if form.is_step { with_rows(width) } else { with_hidden(width) };
        let layer = format!("model.layers.{index}");
        let name = match sub_layer_norms {
            SubLayerNorms::Before => "post_attention_layernorm",
            SubLayerNorms::Around => "pre_feedforward_layernorm",
        };
        let normed = self.norm(&mut graph, &hidden, &format!("{layer}.{name}.weight"), width)?;
        let part = self.gated(&format!("{layer}.mlp"), dense_inner)?;
        let made = part.add_to(&mut graph, &normed);
        let norm = format!("{layer}.post_feedforward_layernorm.weight");
        let sum = self.end_sub_layer(&mut graph, &hidden, &made, &norm)?;
        Ok(match form.is_step {
            true => self.step_network(graph, &sum, form.precision),
            false => self.network(graph, &sum, form.precision),
        })
    }

    /// Adds the end of a sub-layer that made `output` of `hidden`: the norm `norm` if outputs have
    /// one, and the residual.
    pub(super) fn end_sub_layer(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        output: &str,
        norm: &str,
    ) -> Result<String, ArchError> {
        let output = match self.shape.sub_layer_norms {
            SubLayerNorms::Before => output.to_owned(),
            SubLayerNorms::Around => self.norm(graph, output, norm, self.shape.width)?,
        };
        let output = scaled(graph, &output, self.shape.residual_multiplier);
        Ok(graph.node("Add", &[hidden, &output], &[]))
    }

    /// Returns the feed-forward part whose three matrices have separate names.
    pub(super) fn gated(&self, name: &str, inner: usize) -> Result<Gated, ArchError> {
        let width = self.shape.width;
        let matrix =
            |part: &str, shape: [usize; 2]| self.weight(&format!("{name}.{part}.weight"), &shape);
        Ok(Gated {
            gate: matrix("gate_proj", [inner, width])?,
            up: matrix("up_proj", [inner, width])?,
            down: matrix("down_proj", [width, inner])?,
            nonlinearity: self.shape.nonlinearity,
        })
    }

    fn embeddings(&self) -> Result<TensorProto, PoolError> {
        let Shape { num_words, width, .. } = self.shape;
        self.weight("model.embed_tokens.weight", &[num_words, width])
    }

    /// Adds an RMS norm over the last axis, whose extent is `width`.
    pub(super) fn norm(
        &self,
        graph: &mut GraphBuilder,
        value: &str,
        name: &str,
        width: usize,
    ) -> Result<String, ArchError> {
        let mut gamma = float_weight(graph, self.weight(name, &[width])?);
        if self.shape.are_factors_raised {
            let one = graph.float(1.0);
            gamma = graph.node("Add", &[&gamma, &one], &[]);
        }
        let epsilon = Attribute::Float(self.shape.epsilon);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", epsilon)];
        Ok(graph.node("SimplifiedLayerNormalization", &[value, &gamma], &attributes))
    }

    pub(super) fn network(
        &self,
        graph: GraphBuilder,
        value: &str,
        precision: Precision,
    ) -> Network {
        let shape = [None, None, extent(self.shape.width)];
        Network::new(graph.finish(value, "output", &shape), precision)
    }

    /// Returns the network of `graph` for the tokens of a step, `[tokens, width]`.
    pub(super) fn step_network(
        &self,
        graph: GraphBuilder,
        value: &str,
        precision: Precision,
    ) -> Network {
        let shape = [None, extent(self.shape.width)];
        Network::new(graph.finish(value, "output", &shape), precision)
    }

    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<TensorProto, PoolError> {
        self.checkpoint.weight(name, shape)
    }
}

/// Gated feed-forward part: `down(nonlinearity(gate x) * up x)` (Shazeer 2020).
#[derive(Debug)]
pub(super) struct Gated {
    /// Matrix `gate`, \[inner, width\].
    pub(super) gate: TensorProto,
    /// Matrix `up`, \[inner, width\].
    pub(super) up: TensorProto,
    /// Matrix `down`, \[width, inner\].
    pub(super) down: TensorProto,
    /// Nonlinearity of what `gate` gives.
    pub(super) nonlinearity: Nonlinearity,
}

impl Gated {
    /// Adds the part's computation on `value` and returns its output.
    pub(super) fn add_to(self, graph: &mut GraphBuilder, value: &str) -> String {
        let gate = linear(graph, value, self.gate);
        let gate = match self.nonlinearity {
            Nonlinearity::Silu => {
                let open = graph.node("Sigmoid", &[&gate], &[]);
                graph.node("Mul", &[&gate, &open], &[])
            }
            other => other.add(graph, &gate, None),
        };
        let up = linear(graph, value, self.up);
        let inner = graph.node("Mul", &[&gate, &up], &[]);
        linear(graph, &inner, self.down)
    }
}

/// Adds a lookup of token ids in `table`; only the found rows are converted to f32.
pub(super) fn embedded(graph: &mut GraphBuilder, ids: &str, table: TensorProto) -> String {
    taken_weight(graph, table, ids, 0)
}

/// Adds the outputs `output` (the logits, `words` wide) and `states` (`width` wide), and builds the
/// model.
pub(super) fn finish_head(
    mut graph: GraphBuilder,
    [logits, states]: [&str; 2],
    [words, width]: [usize; 2],
) -> ModelProto {
    graph.output(logits, "output", &[None, None, extent(words)]);
    graph.finish(states, "states", &[None, None, extent(width)])
}

/// Multiplies `value` by `factor`, unless it is 1.
pub(super) fn scaled(graph: &mut GraphBuilder, value: &str, factor: f32) -> String {
    if (factor - 1.0).abs() < f32::EPSILON {
        return value.to_owned();
    }
    let factor = graph.float(factor);
    graph.node("Mul", &[value, &factor], &[])
}
