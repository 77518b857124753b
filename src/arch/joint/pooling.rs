//! Pooling hidden states to one vector per sequence.

use crate::{
    arch::ops::{extent, token_input, with_hidden},
    module::{ATTENTION_MASK, Network, Precision},
    onnx::{Attribute, GraphBuilder, proto::data_type},
};

/// Reduction of the hidden states of a text to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The first token.
    First,
    /// The mean over tokens.
    Mean,
    /// The largest value of each element over tokens.
    Max,
    /// The last token before the padding.
    Last,
}

/// Adds the vector of each text, `[batch, width]`; padding does not count.
pub(crate) fn pooled(graph: &mut GraphBuilder, hidden: &str, pooling: Pooling) -> String {
    if pooling == Pooling::First {
        let first = graph.int(0);
        return graph.node("Gather", &[hidden, &first], &[("axis", Attribute::Int(1))]);
    }
    let mask = token_input(graph, ATTENTION_MASK);
    let mask = float_mask(graph, &mask);
    match pooling {
        Pooling::First | Pooling::Mean => mean(graph, hidden, &mask),
        Pooling::Max => {
            let (one, least, axis) = (graph.float(1.0), graph.float(-1e9), graph.ints(&[1]));
            let is_token = graph.node("Equal", &[&mask, &one], &[]);
            let kept = graph.node("Where", &[&is_token, hidden, &least], &[]);
            reduce(graph, "ReduceMax", &kept, &axis, false)
        }
        Pooling::Last => {
            // A token is the last one if the next place is padding, or beyond the end.
            let turned = [("perm", Attribute::Ints(vec![0, 2, 1]))];
            let mask = graph.node("Transpose", &[&mask], &turned);
            let [start, end, axis] = [1, i64::MAX, 2].map(|value| graph.ints(&[value]));
            let next = graph.node("Slice", &[&mask, &start, &end, &axis], &[]);
            let pads = graph.ints(&[0, 0, 0, 0, 0, 1]);
            let next = graph.node("Pad", &[&next, &pads], &[]);
            let is_last = graph.node("Sub", &[&mask, &next], &[]);
            sum_tokens(graph, hidden, &is_last)
        }
    }
}

/// Builds the usual head of embeddings: the mean over tokens, divided by its L2 norm.
///
/// # Shapes
///
/// - hidden: \[batch, tokens, width\]
/// - output: \[batch, width\]
pub(crate) fn mean_head(width: usize) -> Network {
    let (mut graph, hidden) = with_hidden(width);
    let mean = pooled(&mut graph, &hidden, Pooling::Mean);
    let unit = normalize(&mut graph, &mean);
    let shape = [None, extent(width)];
    Network::new(graph.finish(&unit, "output", &shape), Precision::F32)
}

/// Returns `mask` as `[batch, tokens, 1]` f32.
pub(crate) fn float_mask(graph: &mut GraphBuilder, mask: &str) -> String {
    let last = graph.ints(&[-1]);
    let mask = graph.node("Unsqueeze", &[mask, &last], &[]);
    graph.node("Cast", &[&mask], &[("to", Attribute::Int(i64::from(data_type::FLOAT)))])
}

/// Adds the mean of `hidden` over the tokens that `mask` keeps, `[batch, width]`.
pub(crate) fn mean(graph: &mut GraphBuilder, hidden: &str, mask: &str) -> String {
    let axis = graph.ints(&[1]);
    let tiny = graph.float(1e-9);
    let turned = [("perm", Attribute::Ints(vec![0, 2, 1]))];
    let weights = graph.node("Transpose", &[mask], &turned);
    let sum = sum_tokens(graph, hidden, &weights);
    let count = reduce(graph, "ReduceSum", mask, &axis, false);
    let count = graph.node("Max", &[&count, &tiny], &[]);
    graph.node("Div", &[&sum, &count], &[])
}

/// Adds the mean of `hidden` over all tokens, `[batch, width]`.
pub(crate) fn mean_of_all(graph: &mut GraphBuilder, hidden: &str) -> String {
    let (axis, one) = (graph.ints(&[1]), graph.float(1.0));
    let extents = |start, end| [("start", Attribute::Int(start)), ("end", Attribute::Int(end))];
    let shape = graph.node("Shape", &[hidden], &extents(0, 2));
    let ones = graph.node("Expand", &[&one, &shape], &[]);
    let ones = graph.node("Unsqueeze", &[&ones, &axis], &[]);
    let sum = sum_tokens(graph, hidden, &ones);
    let count = graph.node("Shape", &[hidden], &extents(1, 2));
    let to_float = [("to", Attribute::Int(i64::from(data_type::FLOAT)))];
    let count = graph.node("Cast", &[&count], &to_float);
    graph.node("Div", &[&sum, &count], &[])
}

/// Adds the sum of `hidden` over its tokens, times `weights`, `[batch, 1, tokens]`:
/// `[batch, width]`.
///
/// The sum is a matrix product. ONNX Runtime's reductions add up a single sequence in another order
/// than the same sequence in a batch.
fn sum_tokens(graph: &mut GraphBuilder, hidden: &str, weights: &str) -> String {
    let axis = graph.ints(&[1]);
    let sum = graph.node("MatMul", &[weights, hidden], &[]);
    graph.node("Squeeze", &[&sum, &axis], &[])
}

/// Divides each vector of `[batch, width]` by its L2 norm.
pub(crate) fn normalize(graph: &mut GraphBuilder, vector: &str) -> String {
    let axis = graph.ints(&[-1]);
    let tiny = graph.float(1e-12);
    let norm = reduce(graph, "ReduceL2", vector, &axis, true);
    let norm = graph.node("Max", &[&norm, &tiny], &[]);
    graph.node("Div", &[vector, &norm], &[])
}

/// Adds the reduction `op` of `value` along `axis`.
pub(crate) fn reduce(
    graph: &mut GraphBuilder,
    op: &str,
    value: &str,
    axis: &str,
    keep: bool,
) -> String {
    graph.node(op, &[value, axis], &[("keepdims", Attribute::Int(i64::from(keep)))])
}
