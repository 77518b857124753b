//! Token merging: some tokens become parts of the most similar ones of the others, so that later
//! blocks have fewer (ToMe, Bolya et al. 2023).
//!
//! Tokens are chosen by their places alone, and the others that they join by their states. A
//! text's result is then its own, however long the other texts of a batch are. A row stands for as
//! many tokens as its size says, and counts as often in attention and in the mean.

use super::pooling::{float_mask, mean, reduce};
use crate::{
    arch::ops::{extent, token_input, with_hidden},
    module::{ATTENTION_MASK, Network, Precision, TOKEN_SIZES},
    onnx::{Attribute, GraphBuilder, proto::data_type},
    tensor::signed,
};

/// Size of padding in attention, whose share is then 0.
const NOTHING: f32 = 1e-30;

/// Sources and targets of a merging in a graph.
struct Rows {
    /// States, `[batch, rows, width]`.
    states: String,
    /// Sizes, `[batch, rows, 1]`.
    sizes: String,
}

/// Builds the merging of one token in `every`, the second of each so many.
///
/// # Shapes
///
/// - hidden: \[batch, tokens, width\]
/// - attention_mask: \[batch, tokens\]
/// - output: \[batch, rows, width\]
/// - token_sizes: \[batch, rows\]
pub(crate) fn network(width: usize, every: usize) -> Network {
    let (mut graph, hidden) = with_hidden(width);
    let mask = token_input(&mut graph, ATTENTION_MASK);
    let sizes = float_mask(&mut graph, &mask);
    let [sources, targets] = split(&mut graph, &Rows { states: hidden, sizes }, every);
    let parts = parts(&mut graph, &sources, &targets);
    let (first, last) = (graph.ints(&[1]), graph.ints(&[2]));
    let by_target = [("perm", Attribute::Ints(vec![0, 2, 1]))];
    let parts_of = graph.node("Transpose", &[&parts], &by_target);
    let added = graph.node("MatMul", &[&parts_of, &sources.states], &[]);
    let own = graph.node("Mul", &[&targets.states, &targets.sizes], &[]);
    let sum = graph.node("Add", &[&own, &added], &[]);
    let grown = reduce(&mut graph, "ReduceSum", &parts, &first, false);
    let own = graph.node("Squeeze", &[&targets.sizes, &last], &[]);
    let sizes = graph.node("Add", &[&own, &grown], &[]);
    let by_row = graph.node("Unsqueeze", &[&sizes, &last], &[]);
    let nothing = graph.float(NOTHING);
    let divisor = graph.node("Max", &[&by_row, &nothing], &[]);
    let states = graph.node("Div", &[&sum, &divisor], &[]);
    graph.output(&states, "output", &[None, None, extent(width)]);
    graph.output(&sizes, TOKEN_SIZES, &[None, None]);
    Network::new(graph.end(), Precision::F32)
}

/// Takes the tokens that are merged from the others.
fn split(graph: &mut GraphBuilder, rows: &Rows, every: usize) -> [Rows; 2] {
    let tokens = [("start", Attribute::Int(1)), ("end", Attribute::Int(2))];
    let tokens = graph.node("Shape", &[&rows.states], &tokens);
    let axis = graph.ints(&[0]);
    let tokens = graph.node("Squeeze", &[&tokens, &axis], &[]);
    let [zero, one, every] = [0, 1, signed(every)].map(|value| graph.int(value));
    let places = graph.node("Range", &[&zero, &tokens, &one], &[]);
    let rest = graph.node("Mod", &[&places, &every], &[]);
    let is_source = graph.node("Equal", &[&rest, &one], &[]);
    let is_target = graph.node("Not", &[&is_source], &[]);
    let along = [("axis", Attribute::Int(1))];
    [is_source, is_target].map(|is_taken| Rows {
        states: graph.node("Compress", &[&rows.states, &is_taken], &along),
        sizes: graph.node("Compress", &[&rows.sizes, &is_taken], &along),
    })
}

/// Adds the size of each source at the target that it becomes a part of, `[batch, sources,
/// targets]`.
fn parts(graph: &mut GraphBuilder, sources: &Rows, targets: &Rows) -> String {
    let last = graph.ints(&[-1]);
    let turned = [("perm", Attribute::Ints(vec![0, 2, 1]))];
    let norms = reduce(graph, "ReduceL2", &targets.states, &last, true);
    let tiny = graph.float(1e-12);
    let norms = graph.node("Max", &[&norms, &tiny], &[]);
    let near = graph.node("Div", &[&targets.states, &norms], &[]);
    let near = graph.node("Transpose", &[&near], &turned);
    let similar = graph.node("MatMul", &[&sources.states, &near], &[]);
    let [zero, least] = [0.0, -1e9].map(|value| graph.float(value));
    let is_padding = graph.node("Equal", &[&targets.sizes, &zero], &[]);
    let lowered = graph.node("Where", &[&is_padding, &least, &zero], &[]);
    let lowered = graph.node("Transpose", &[&lowered], &turned);
    let similar = graph.node("Add", &[&similar, &lowered], &[]);
    let along = [("axis", Attribute::Int(2)), ("keepdims", Attribute::Int(0))];
    let nearest = graph.node("ArgMax", &[&similar], &along);
    let extents = [("start", Attribute::Int(1)), ("end", Attribute::Int(2))];
    let num_targets = graph.node("Shape", &[&targets.states], &extents);
    let ends = graph.floats(vec![2], &[0.0, 1.0]);
    let chosen = graph.node("OneHot", &[&nearest, &num_targets, &ends], &[]);
    graph.node("Mul", &[&chosen, &sources.sizes], &[])
}

/// Adds what the sizes of rows add to the scores of attention, `[batch, 1, rows, rows]`.
pub(in crate::arch) fn scores(graph: &mut GraphBuilder) -> String {
    let sizes = graph.input(TOKEN_SIZES, data_type::FLOAT, &[None, None]);
    let nothing = graph.float(NOTHING);
    let sizes = graph.node("Max", &[&sizes, &nothing], &[]);
    let scores = graph.node("Log", &[&sizes], &[]);
    let axes = graph.ints(&[1, 2]);
    let scores = graph.node("Unsqueeze", &[&scores, &axes], &[]);
    let one = graph.ints(&[1]);
    let extents = |start, end| [("start", Attribute::Int(start)), ("end", Attribute::Int(end))];
    let batch = graph.node("Shape", &[&sizes], &extents(0, 1));
    let rows = graph.node("Shape", &[&sizes], &extents(1, 2));
    let along = [("axis", Attribute::Int(0))];
    let shape = graph.node("Concat", &[&batch, &one, &rows, &rows], &along);
    graph.node("Expand", &[&scores, &shape], &[])
}

/// Adds the mean of `hidden` over the tokens for which its rows stand, `[batch, width]`.
pub(in crate::arch) fn mean_of_sizes(graph: &mut GraphBuilder, hidden: &str) -> String {
    let sizes = graph.input(TOKEN_SIZES, data_type::FLOAT, &[None, None]);
    let last = graph.ints(&[-1]);
    let sizes = graph.node("Unsqueeze", &[&sizes, &last], &[]);
    mean(graph, hidden, &sizes)
}
