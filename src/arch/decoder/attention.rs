//! Attention of decoders: each token sees itself and the tokens before it.
//!
//! The module has rotary positions (Su et al. 2021), and keys and values shared by groups of heads
//! (Ainslie et al. 2023). It also has a sliding window (Mixtral's predecessor, Jiang et al. 2023).
//! Padding follows a sequence's tokens, so no token sees it and no mask is read.
//! Here a whole sequence runs at once; with a cache, `cached` runs it step by step.

use super::{Decoder, config::Attention, dialects::Norms, scaled};
use crate::{
    arch::{
        error::ArchError,
        ops::{float_weight, linear, with_hidden},
    },
    module::{Network, Precision},
    onnx::{Attribute, GraphBuilder, proto::data_type},
    tensor::signed,
};

/// Letters of the projections in the names of tensors.
pub(super) const LETTERS: [char; 3] = ['q', 'k', 'v'];

/// Projection of a block: its letter (`q`, `k` or `v`), its number of heads, and the extents of
/// tokens before its width in a reshape.
#[derive(Debug, Clone, Copy)]
struct Projection<'a> {
    block: usize,
    letter: char,
    num_heads: usize,
    tokens: &'a [i64],
}

/// Extents of the tokens of a batch in a reshape, and of those of a step.
const OF_BATCH: [i64; 2] = [0, 0];
pub(super) const OF_STEP: [i64; 1] = [0];

impl Decoder {
    /// Builds the attention sub-layer of block `index` with its norm and residual.
    ///
    /// # Shapes
    ///
    /// - hidden: \[batch, tokens, width\]
    pub(super) fn attention(
        &self,
        index: usize,
        precision: Precision,
    ) -> Result<Network, ArchError> {
        let shape = &self.shape.attention[index];
        let (mut graph, hidden) = with_hidden(self.shape.width);
        let [queries, keys, values] = self.projected(&mut graph, &hidden, index, &OF_BATCH)?;
        let count = num_tokens(&mut graph, &hidden);
        let turns = turns(&mut graph, &count, shape);
        let first = graph.ints(&[0]);
        let [queries, keys] =
            [queries, keys].map(|value| turn(&mut graph, &value, &first, &turns, shape));
        let queries = scaled(&mut graph, &queries, shape.scale);
        let mixed = mix(&mut graph, [&queries, &keys, &values], &count, shape);
        let sum = self.end_attention(&mut graph, &hidden, &mixed, index)?;
        Ok(self.network(graph, &sum, precision))
    }

    /// Adds the norm before the attention of block `index`, and its queries, keys and values. In a
    /// reshape, `tokens` are the extents of tokens.
    pub(super) fn projected(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        index: usize,
        tokens: &[i64],
    ) -> Result<[String; 3], ArchError> {
        let Attention { num_heads, num_shared_heads, .. } = self.shape.attention[index];
        let normed = self.normed(graph, hidden, index)?;
        let mut project = |letter, num_heads| {
            let projection = Projection { block: index, letter, num_heads, tokens };
            self.project(graph, &normed, projection)
        };
        let queries = project('q', num_heads)?;
        let keys = project('k', num_shared_heads)?;
        Ok([queries, keys, project('v', num_shared_heads)?])
    }

    /// Adds the norm before the attention of block `index`.
    pub(super) fn normed(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        index: usize,
    ) -> Result<String, ArchError> {
        let name = format!("model.layers.{index}.input_layernorm.weight");
        self.norm(graph, hidden, &name, self.shape.width)
    }

    /// Adds the product of block `index`'s queries, keys or values.
    pub(super) fn product(
        &self,
        graph: &mut GraphBuilder,
        normed: &str,
        index: usize,
        letter: char,
    ) -> Result<String, ArchError> {
        let width = self.shape.attention[index].width_of(letter);
        let name = format!("model.layers.{index}.self_attn.{letter}_proj.weight");
        Ok(linear(graph, normed, self.weight(&name, &[width, self.shape.width])?))
    }

    /// Adds the bias of block `index`'s queries, keys or values.
    pub(super) fn bias(
        &self,
        graph: &mut GraphBuilder,
        index: usize,
        letter: char,
    ) -> Result<String, ArchError> {
        let width = self.shape.attention[index].width_of(letter);
        let name = format!("model.layers.{index}.self_attn.{letter}_proj.bias");
        Ok(float_weight(graph, self.weight(&name, &[width])?))
    }

    /// Adds the output projection of block `index`'s attention and the residual `hidden`.
    pub(super) fn end_attention(
        &self,
        graph: &mut GraphBuilder,
        hidden: &str,
        mixed: &str,
        index: usize,
    ) -> Result<String, ArchError> {
        let width = self.shape.width;
        let Attention { num_heads, head_width, has_output_bias, .. } = self.shape.attention[index];
        let name = format!("model.layers.{index}.self_attn.o_proj");
        let matrix = self.weight(&format!("{name}.weight"), &[width, num_heads * head_width])?;
        let mut output = linear(graph, mixed, matrix);
        if has_output_bias {
            let bias = float_weight(graph, self.weight(&format!("{name}.bias"), &[width])?);
            output = graph.node("Add", &[&output, &bias], &[]);
        }
        let norm = format!("model.layers.{index}.post_attention_layernorm.weight");
        self.end_sub_layer(graph, hidden, &output, &norm)
    }

    /// Adds queries, keys or values, projected, normalized and clamped as in the architecture.
    fn project(
        &self,
        graph: &mut GraphBuilder,
        normed: &str,
        Projection { block, letter, num_heads, tokens }: Projection<'_>,
    ) -> Result<String, ArchError> {
        let Attention { head_width, has_biases, norms, clip, .. } = self.shape.attention[block];
        let width = num_heads * head_width;
        let mut value = self.product(graph, normed, block, letter)?;
        if has_biases {
            let bias = self.bias(graph, block, letter)?;
            value = graph.node("Add", &[&value, &bias], &[]);
        }
        let norm = format!("model.layers.{block}.self_attn.{letter}_norm.weight");
        match norms {
            Norms::Whole if letter != 'v' => value = self.norm(graph, &value, &norm, width)?,
            Norms::Heads if letter != 'v' => {
                let split = [signed(num_heads), signed(head_width)];
                let heads = reshaped(graph, &value, &[tokens, &split].concat());
                let normed = self.norm(graph, &heads, &norm, head_width)?;
                value = reshaped(graph, &normed, &[tokens, &[signed(width)]].concat());
            }
            Norms::None | Norms::Whole | Norms::Heads => {}
        }
        if let Some(clip) = clip {
            value = clipped(graph, &value, clip);
        }
        Ok(value)
    }
}

impl Attention {
    /// Returns the width of all queries, keys or values of a token.
    fn width_of(&self, letter: char) -> usize {
        let heads = if letter == 'q' { self.num_heads } else { self.num_shared_heads };
        heads * self.head_width
    }

    /// Returns the angle between neighbouring positions of each pair of a head's elements.
    pub(super) fn frequencies(&self) -> Vec<f32> {
        self.rope.frequencies(self.head_width / 2)
    }
}

/// Clamps absolute values to `most`.
pub(super) fn clipped(graph: &mut GraphBuilder, value: &str, most: f32) -> String {
    let (least, most) = (graph.float(-most), graph.float(most));
    graph.node("Clip", &[value, &least, &most], &[])
}

/// Adds the number of tokens of `[batch, tokens, …]`, as a list of one element.
pub(super) fn num_tokens(graph: &mut GraphBuilder, value: &str) -> String {
    graph.node("Shape", &[value], &[("start", Attribute::Int(1)), ("end", Attribute::Int(2))])
}

/// Adds the cosines and sines of the positions' rotations.
///
/// # Shapes
///
/// - both: \[tokens, head width / 2\]
fn turns(graph: &mut GraphBuilder, count: &str, shape: &Attention) -> [String; 2] {
    let frequencies = shape.frequencies();
    let frequencies = graph.floats(vec![1, signed(frequencies.len())], &frequencies);
    let positions = positions(graph, count);
    let to = [("to", Attribute::Int(i64::from(data_type::FLOAT)))];
    let positions = graph.node("Cast", &[&positions], &to);
    let positions = unsqueezed(graph, &positions, 1);
    let angles = graph.node("Mul", &[&positions, &frequencies], &[]);
    ["Cos", "Sin"].map(|op| graph.node(op, &[&angles], &[]))
}

/// Rotates the heads of `value` by `positions`, or by the positions from the one in it: the first
/// half of each against the second, or neighbours.
pub(super) fn turn(
    graph: &mut GraphBuilder,
    value: &str,
    positions: &str,
    [cosines, sines]: &[String; 2],
    shape: &Attention,
) -> String {
    let interleaved = [("interleaved", Attribute::Int(1))];
    let attributes: &[_] = if shape.is_interleaved { &interleaved } else { &[] };
    graph.fused("RotaryEmbedding", &[value, positions, cosines, sines], attributes)
}

/// Mixes values by the softmax of the scores of queries and keys.
///
/// # Shapes
///
/// - queries: \[batch, tokens, heads × head width\]
/// - keys, values: \[batch, tokens, shared heads × head width\]
/// - output: as queries
fn mix(
    graph: &mut GraphBuilder,
    [queries, keys, values]: [&str; 3],
    count: &str,
    shape: &Attention,
) -> String {
    let (shared, head) = (signed(shape.num_shared_heads), signed(shape.head_width));
    let group = signed(shape.num_heads / shape.num_shared_heads);
    // The heads that share keys are stacked, so that one product covers all of them.
    let queries = reshaped(graph, queries, &[0, 0, shared, group, head]);
    let queries = permuted(graph, &queries, &[0, 2, 3, 1, 4]);
    let queries = reshaped(graph, &queries, &[0, shared, -1, head]);
    let keys = reshaped(graph, keys, &[0, 0, shared, head]);
    let keys = permuted(graph, &keys, &[0, 2, 3, 1]);
    let scores = graph.node("MatMul", &[&queries, &keys], &[]);
    let scores = reshaped_to(graph, &scores, &[0, shared, group, -1], &[count]);
    let hidden = hiding(graph, count, shape.window);
    let scores = graph.node("Add", &[&scores, &hidden], &[]);
    let shares = graph.node("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    let shares = reshaped_to(graph, &shares, &[0, shared, -1], &[count]);
    let values = reshaped(graph, values, &[0, 0, shared, head]);
    let values = permuted(graph, &values, &[0, 2, 1, 3]);
    let mixed = graph.node("MatMul", &[&shares, &values], &[]);
    let mixed = reshaped(graph, &mixed, &[0, shared, group, -1, head]);
    let mixed = permuted(graph, &mixed, &[0, 3, 1, 2, 4]);
    reshaped(graph, &mixed, &[0, 0, shared * group * head])
}

/// Adds the mask that keeps scores of unseen tokens out of a softmax, `[tokens, tokens]`.
fn hiding(graph: &mut GraphBuilder, count: &str, window: Option<usize>) -> String {
    let seen = seen(graph, count, window);
    let (nothing, least) = (graph.float(0.0), graph.float(f32::MIN));
    graph.node("Where", &[&seen, &nothing, &least], &[])
}

/// Adds a mask of the tokens (columns) that each token (row) sees: itself and those before it. With
/// a window, it sees `window` tokens, itself included.
///
/// # Shapes
///
/// - output: \[tokens, tokens\]
pub(super) fn seen(graph: &mut GraphBuilder, count: &str, window: Option<usize>) -> String {
    let positions = positions(graph, count);
    let (rows, columns) = (unsqueezed(graph, &positions, 1), unsqueezed(graph, &positions, 0));
    let before = graph.node("LessOrEqual", &[&columns, &rows], &[]);
    let Some(window) = window else {
        return before;
    };
    let window = graph.int(signed(window));
    let end = graph.node("Add", &[&columns, &window], &[]);
    let near = graph.node("Less", &[&rows, &end], &[]);
    graph.node("And", &[&before, &near], &[])
}

/// Adds the numbers from 0 to `count` - 1.
fn positions(graph: &mut GraphBuilder, count: &str) -> String {
    let (first, step) = (graph.int(0), graph.int(1));
    let axis = graph.ints(&[0]);
    let end = graph.node("Squeeze", &[count, &axis], &[]);
    graph.node("Range", &[&first, &end, &step], &[])
}

fn unsqueezed(graph: &mut GraphBuilder, value: &str, axis: i64) -> String {
    let axis = graph.ints(&[axis]);
    graph.node("Unsqueeze", &[value, &axis], &[])
}

/// Reshapes `value` to `shape`, in which 0 keeps an extent.
pub(super) fn reshaped(graph: &mut GraphBuilder, value: &str, shape: &[i64]) -> String {
    let shape = graph.ints(shape);
    graph.node("Reshape", &[value, &shape], &[])
}

/// Reshapes `value` to the constant extents `first` and the computed extents `last`.
pub(super) fn reshaped_to(
    graph: &mut GraphBuilder,
    value: &str,
    first: &[i64],
    last: &[&str],
) -> String {
    let first = graph.ints(first);
    let parts: Vec<&str> = std::iter::once(&*first).chain(last.iter().copied()).collect();
    let shape = graph.node("Concat", &parts, &[("axis", Attribute::Int(0))]);
    graph.node("Reshape", &[value, &shape], &[])
}

pub(super) fn permuted(graph: &mut GraphBuilder, value: &str, order: &[i64]) -> String {
    graph.node("Transpose", &[value], &[("perm", Attribute::Ints(order.to_vec()))])
}
