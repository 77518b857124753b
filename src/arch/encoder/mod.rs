//! Encoders of post-norm blocks, such as BERT and its relatives.
//!
//! A block computes `h = norm(x + attention(x))`, then `norm(h + mlp(h))` (Devlin et al. 2019,
//! section 3). Each sub-layer is a module of its own, so that each can be dropped or quantized
//! separately. A [`Shape`] and [`Names`] hold the names and positions that differ between
//! architectures.
//!
//! A block may run with a prefix of its heads and hidden units (DynaBERT, Hou et al. 2020). Its
//! tokens keep their width.

pub(super) mod bert;
pub(super) mod mpnet;
mod relative;
pub(super) mod sentence;
mod texts;

use super::{
    ArchError,
    backbone::{Backbone, Dense, Expansion, Form},
    joint::merging,
    keys::ConfigFile,
    layout::{Axes, Layout, PartId, PartSpec, Reads, Widest},
    nonlinearity::Nonlinearity,
    ops::{extent, float_weight, layer_norm, linear, linear_of_first, token_input, with_hidden},
};
use crate::{
    family::{Fault, ModuleKind, SpaceSpec},
    module::{ATTENTION_MASK, Body, INPUT_IDS, Network, Precision},
    onnx::{
        Attribute, GraphBuilder,
        proto::{TensorProto, data_type},
    },
    pool::{Checkpoint, PoolError},
    tensor::signed,
};
use sentence::Sentence;

/// Sizes of an encoder, and the computation of its layers.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Width of a hidden state.
    pub(super) width: usize,
    /// Number of hidden units of a feed-forward sub-layer.
    pub(super) inner_width: usize,
    /// Number of blocks.
    pub(super) num_blocks: usize,
    /// Number of attention heads.
    pub(super) num_heads: usize,
    /// Number of token ids.
    pub(super) num_words: usize,
    /// Number of rows of the position table.
    pub(super) num_positions: usize,
    /// Row of the position table for the first token.
    pub(super) first_position: usize,
    /// Number of token types; 0 if the architecture has none.
    pub(super) num_token_types: usize,
    /// Number of buckets of relative positions in attention; 0 if attention uses none.
    pub(super) num_buckets: usize,
    /// Epsilon of the layer norms.
    pub(super) epsilon: f32,
    /// Nonlinearity of the feed-forward parts.
    pub(super) nonlinearity: Nonlinearity,
}

/// Tensor names of an attention sub-layer, after `encoder.layer.{index}.attention.`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Names of the projections to queries, keys and values.
    pub(super) projections: [&'static str; 3],
    /// Name of the output projection.
    pub(super) output: &'static str,
    /// Name of the layer norm.
    pub(super) norm: &'static str,
}

/// Encoder whose weights lie in a checkpoint.
#[derive(Debug)]
pub(super) struct Encoder {
    /// Sizes of the encoder.
    shape: Shape,
    /// Names of the attention's tensors.
    names: Names,
    /// Checkpoint that holds the weights.
    checkpoint: Checkpoint,
    /// Head, and preparation of texts.
    sentence: Sentence,
    layout: Layout,
}

/// Inputs of attention beside queries, keys and values.
struct Seen {
    /// Mask with 0 for padding, `[batch, tokens]`; empty if `scores` says it.
    mask: String,
    /// Added to the scores, `[batch or 1, heads or 1, tokens, tokens]`.
    scores: Option<String>,
}

/// Names of a sub-layer's last matrix and its norm, after the prefix.
struct Ending {
    dense: String,
    norm: String,
}

impl Backbone for Encoder {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn build(&self, part: PartId, form: &Form<'_>) -> Result<Body, ArchError> {
        let PartSpec { kind, block, .. } = self.layout.part(part);
        let block = block.unwrap_or_default();
        let network = match kind {
            ModuleKind::Stem => self.stem(),
            ModuleKind::Head => {
                return Ok(self.sentence.head(self.shape.width, form.is_merged)?.into());
            }
            ModuleKind::Attention => self.attention(block, form),
            _ => self.mlp(block, form),
        };
        network.map(Body::from)
    }

    fn dense(&self, index: usize) -> Result<Option<Dense>, ArchError> {
        let Shape { width, inner_width, epsilon, .. } = self.shape;
        let output = format!("encoder.layer.{index}.output");
        let vector = |name: &str| self.weight(&format!("{output}.{name}"), &[width]);
        Ok(Some(Dense {
            width,
            num_units: inner_width,
            expansion: self.expand(index, inner_width)?,
            contraction: self.weight(&format!("{output}.dense.weight"), &[width, inner_width])?,
            bias: vector("dense.bias")?,
            norm: [vector("LayerNorm.weight")?, vector("LayerNorm.bias")?],
            is_pre_norm: false,
            epsilon,
            scale: None,
        }))
    }
}

impl Encoder {
    /// Creates an encoder of `shape`, whose weights lie in `checkpoint`.
    pub(super) fn new(
        shape: Shape,
        names: Names,
        checkpoint: Checkpoint,
        sentence: Sentence,
    ) -> Self {
        let tokens = SpaceSpec::of_extents(&[None, Some(shape.width)]);
        let reads = Reads::Tokens {
            num_words: Some(shape.num_words),
            max_tokens: [Some(shape.num_positions - shape.first_position), sentence.max_tokens]
                .into_iter()
                .flatten()
                .min(),
        };
        // Relative positions have a score for each head, which is not cut.
        let (heads, hidden) = (shape.num_heads, shape.inner_width);
        let width = (shape.num_buckets == 0).then_some(Widest { heads, hidden });
        let part = |kind| (kind, Axes { width, ..Axes::default() });
        let block = || [ModuleKind::Attention, ModuleKind::Mlp].map(part);
        let blocks = (0..shape.num_blocks).map(|_| block().to_vec());
        let gives = SpaceSpec::of_extents(&[Some(sentence.width(shape.width))]);
        let mut layout = Layout::uniform(reads, &tokens, gives, blocks);
        layout.prompts.clone_from(&sentence.prompts);
        layout.can_merge = shape.num_buckets == 0 && sentence.can_merge();
        Self { shape, names, checkpoint, sentence, layout }
    }

    /// Builds the embeddings: token ids to hidden states.
    ///
    /// # Shapes
    ///
    /// - input_ids: \[batch, tokens\]
    /// - output: \[batch, tokens, width\]
    fn stem(&self) -> Result<Network, ArchError> {
        let mut graph = GraphBuilder::default();
        let ids = token_input(&mut graph, INPUT_IDS);
        let words = self.table("word", self.shape.num_words)?;
        let words = float_weight(&mut graph, words);
        let mut sum = graph.node("Gather", &[&words, &ids], &[]);
        let positions = self.positions(&mut graph, &ids)?;
        if self.shape.num_token_types > 0 {
            let first = graph.int(0);
            let types = self.table("token_type", self.shape.num_token_types)?;
            let types = float_weight(&mut graph, types);
            let types = graph.node("Gather", &[&types, &first], &[]);
            sum = graph.node("Add", &[&sum, &types], &[]);
        }
        let sum = graph.node("Add", &[&sum, &positions], &[]);
        let vector = |name: &str| self.weight(name, &[self.shape.width]);
        let norm = [vector("embeddings.LayerNorm.weight")?, vector("embeddings.LayerNorm.bias")?];
        let normed = layer_norm(&mut graph, &sum, norm, self.shape.epsilon);
        Ok(self.network(graph, &normed, Precision::F32))
    }

    /// Builds the attention sub-layer of block `index` with its residual and norm.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    /// - attention_mask: \[batch, tokens\], or token_sizes where tokens were merged
    fn attention(&self, index: usize, form: &Form<'_>) -> Result<Network, ArchError> {
        let Shape { width, num_heads, .. } = self.shape;
        let heads = form.width.map_or(num_heads, |narrow| narrow.heads);
        let inner = width / num_heads * heads;
        let layer = format!("encoder.layer.{index}.attention");
        let (mut graph, hidden) = with_hidden(width);
        let Seen { mask, scores } = match form.is_merged {
            true => Seen { mask: String::new(), scores: Some(merging::scores(&mut graph)) },
            false => self.seen(&mut graph, &hidden)?,
        };
        let mut projected = Vec::new();
        let mut biases = Vec::new();
        for part in self.names.projections {
            let rows = |name: &str, shape: &[usize]| {
                self.checkpoint.rows(&format!("{layer}.{part}.{name}"), shape, 0..inner)
            };
            projected.push(linear(&mut graph, &hidden, rows("weight", &[width, width])?));
            let bias = rows("bias", &[width])?;
            biases.push(float_weight(&mut graph, bias));
        }
        let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
        let bias = graph.node("Concat", &biases, &[("axis", Attribute::Int(0))]);
        let mut inputs = vec![&*projected[0], &projected[1], &projected[2], &bias, &mask];
        inputs.extend(scores.as_deref());
        let heads = [("num_heads", Attribute::Int(signed(heads)))];
        let context = graph.fused("MultiHeadAttention", &inputs, &heads);
        let dense = format!("{layer}.{}", self.names.output);
        let weight = self.weight(&format!("{dense}.weight"), &[width, width])?;
        let output = linear_of_first(&mut graph, &context, weight, inner);
        let ending = Ending { dense, norm: format!("{layer}.{}", self.names.norm) };
        self.end_sub_layer(graph, &[&output, &hidden], &ending, form.precision)
    }

    /// Adds the mask of the tokens, and the scores for their distances.
    fn seen(&self, graph: &mut GraphBuilder, hidden: &str) -> Result<Seen, ArchError> {
        let mask = token_input(graph, ATTENTION_MASK);
        let to_int = [("to", Attribute::Int(i64::from(data_type::INT32)))];
        let mask = graph.node("Cast", &[&mask], &to_int);
        Ok(Seen { mask, scores: self.relative_scores(graph, hidden)? })
    }

    /// Returns the expanding half of block `index`'s feed-forward sub-layer, with its first `inner`
    /// hidden units.
    fn expand(&self, index: usize, inner: usize) -> Result<Expansion, ArchError> {
        let Shape { width, inner_width, .. } = self.shape;
        let rows = |name: &str, shape: &[usize]| {
            let name = format!("encoder.layer.{index}.intermediate.dense.{name}");
            self.checkpoint.rows(&name, shape, 0..inner)
        };
        Ok(Expansion {
            weight: rows("weight", &[inner_width, width])?,
            bias: rows("bias", &[inner_width])?,
            nonlinearity: self.shape.nonlinearity,
        })
    }

    /// Builds the feed-forward sub-layer of block `index` with its residual and norm.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    fn mlp(&self, index: usize, form: &Form<'_>) -> Result<Network, ArchError> {
        let Shape { width, inner_width, .. } = self.shape;
        let inner = form.width.map_or(inner_width, |narrow| narrow.hidden);
        let (mut graph, hidden) = with_hidden(width);
        let expansion = self.expand(index, inner)?;
        let expanded = linear(&mut graph, &hidden, expansion.weight);
        let bias = float_weight(&mut graph, expansion.bias);
        let expanded = expansion.nonlinearity.add(&mut graph, &expanded, Some(&bias));
        let output = format!("encoder.layer.{index}.output");
        let weight = self.weight(&format!("{output}.dense.weight"), &[width, inner_width])?;
        let product = linear_of_first(&mut graph, &expanded, weight, inner);
        let ending =
            Ending { dense: format!("{output}.dense"), norm: format!("{output}.LayerNorm") };
        self.end_sub_layer(graph, &[&product, &hidden], &ending, form.precision)
    }

    /// Adds the rows of the position table for the tokens of `ids`, `[tokens, width]`.
    fn positions(&self, graph: &mut GraphBuilder, ids: &str) -> Result<String, ArchError> {
        let axis = [("start", Attribute::Int(1)), ("end", Attribute::Int(2))];
        let mut end = graph.node("Shape", &[ids], &axis);
        let axis = graph.ints(&[0]);
        let first = signed(self.shape.first_position);
        let mut start = axis.clone();
        if first > 0 {
            start = graph.ints(&[first]);
            end = graph.node("Add", &[&end, &start], &[]);
        }
        let table = float_weight(graph, self.table("position", self.shape.num_positions)?);
        Ok(graph.node("Slice", &[&table, &start, &end, &axis], &[]))
    }

    /// Adds the scores for the distances between tokens, or returns `None` if attention uses none.
    fn relative_scores(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
    ) -> Result<Option<String>, ArchError> {
        let num_buckets = self.shape.num_buckets;
        if num_buckets == 0 {
            return Ok(None);
        }
        let shape = [num_buckets, self.shape.num_heads];
        let table = self.weight("encoder.relative_attention_bias.weight", &shape)?;
        let buckets =
            relative::buckets(self.shape.num_positions - self.shape.first_position, num_buckets);
        Ok(Some(relative::scores(graph, hidden, table, &buckets)))
    }

    /// Adds the output bias, the residual and the norm: `norm(output + bias + hidden)`.
    fn end_sub_layer(
        &self,
        mut graph: GraphBuilder,
        [output, hidden]: &[&str; 2],
        ending: &Ending,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let vector =
            |name: &str, part: &str| self.weight(&format!("{name}.{part}"), &[self.shape.width]);
        let norm = [vector(&ending.norm, "weight")?, vector(&ending.norm, "bias")?];
        let bias = float_weight(&mut graph, vector(&ending.dense, "bias")?);
        let sum = graph.node("Add", &[output, &bias], &[]);
        let sum = graph.node("Add", &[&sum, hidden], &[]);
        let normed = layer_norm(&mut graph, &sum, norm, self.shape.epsilon);
        Ok(self.network(graph, &normed, precision))
    }

    fn network(&self, graph: GraphBuilder, value: &str, precision: Precision) -> Network {
        let shape = [None, None, extent(self.shape.width)];
        Network::new(graph.finish(value, "output", &shape), precision)
    }

    /// Returns a table of embeddings.
    fn table(&self, name: &str, rows: usize) -> Result<TensorProto, PoolError> {
        self.weight(&format!("embeddings.{name}_embeddings.weight"), &[rows, self.shape.width])
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<TensorProto, PoolError> {
        self.checkpoint.weight(name, shape)
    }
}

impl Shape {
    /// Checks the limits shared by all architectures; `file` is the configuration.
    pub(super) fn validate(&self, file: ConfigFile<'_>) -> Result<(), ArchError> {
        let heads = self.num_heads;
        let fault = if heads == 0 || !self.width.is_multiple_of(heads) {
            Fault::new("num_attention_heads", heads, "it must divide hidden_size")
        } else if !(1..=1_000).contains(&self.num_blocks) {
            Fault::new("num_hidden_layers", self.num_blocks, "1 to 1000 is supported")
        } else if self.num_positions <= self.first_position {
            let expected = format!("more than {} are needed", self.first_position);
            Fault::new("max_position_embeddings", self.num_positions, expected)
        } else {
            return Ok(());
        };
        Err(file.refuse(fault))
    }
}

/// Returns the nonlinearity that `file` calls `name`.
fn nonlinearity(file: ConfigFile<'_>, name: &str) -> Result<Nonlinearity, ArchError> {
    let fault = || file.refuse(Fault::new("hidden_act", name, Nonlinearity::SUPPORTED));
    Nonlinearity::named(name).ok_or_else(fault)
}
