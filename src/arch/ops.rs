//! Operators that several architectures add to their graphs.

use crate::{
    onnx::{
        Attribute, GraphBuilder,
        proto::{TensorProto, data_type},
    },
    tensor::signed,
};

/// Creates a graph whose state input is `hidden`, `[batch, tokens, width]` f32.
pub(super) fn with_hidden(width: usize) -> (GraphBuilder, String) {
    let mut graph = GraphBuilder::default();
    let hidden = graph.input("hidden", data_type::FLOAT, &[None, None, extent(width)]);
    (graph, hidden)
}

/// Creates a graph whose state input is `hidden`, `[tokens, width]` f32, for the tokens of a step.
pub(super) fn with_rows(width: usize) -> (GraphBuilder, String) {
    let mut graph = GraphBuilder::default();
    let hidden = graph.input("hidden", data_type::FLOAT, &[None, extent(width)]);
    (graph, hidden)
}

/// Declares the input `name`, `[batch, tokens]` INT64.
pub(super) fn token_input(graph: &mut GraphBuilder, name: &str) -> String {
    graph.input(name, data_type::INT64, &[None, None])
}

/// Returns a known extent in a graph's shapes.
pub(super) fn extent(width: usize) -> Option<i64> {
    i64::try_from(width).ok()
}

/// Adds a weight in f32, whatever its type in the file.
pub(super) fn float_weight(graph: &mut GraphBuilder, tensor: TensorProto) -> String {
    let is_float = tensor.data_type == data_type::FLOAT;
    let name = graph.weight(tensor);
    if is_float {
        return name;
    }
    graph.node("Cast", &[&name], &[("to", Attribute::Int(i64::from(data_type::FLOAT)))])
}

/// Adds a weight's rows or columns called `units`, in f32; what else the file holds is not read.
pub(super) fn taken_weight(
    graph: &mut GraphBuilder,
    tensor: TensorProto,
    units: &str,
    axis: i64,
) -> String {
    let is_float = tensor.data_type == data_type::FLOAT;
    let whole = graph.weight(tensor);
    let taken = graph.node("Gather", &[&whole, units], &[("axis", Attribute::Int(axis))]);
    if is_float {
        return taken;
    }
    graph.node("Cast", &[&taken], &[("to", Attribute::Int(i64::from(data_type::FLOAT)))])
}

/// Adds `norm(value)`, where the norm has a scale and an offset.
pub(super) fn layer_norm(
    graph: &mut GraphBuilder,
    value: &str,
    [gamma, beta]: [TensorProto; 2],
    epsilon: f32,
) -> String {
    let [gamma, beta] = [gamma, beta].map(|weight| float_weight(graph, weight));
    let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
    graph.node("LayerNormalization", &[value, &gamma, &beta], &attributes)
}

/// Multiplies `input` by the transpose of a `[out, in]` weight, the form of `Linear` layers.
pub(super) fn linear(graph: &mut GraphBuilder, input: &str, weight: TensorProto) -> String {
    let weight = float_weight(graph, weight);
    let weight = transposed(graph, &weight);
    graph.node("MatMul", &[input, &weight], &[])
}

/// Swaps the axes of a matrix; ONNX Runtime does so once, when it creates the session.
pub(super) fn transposed(graph: &mut GraphBuilder, matrix: &str) -> String {
    graph.node("Transpose", &[matrix], &[("perm", Attribute::Ints(vec![1, 0]))])
}

/// Multiplies the rows of `input` by the first `columns` columns of `weight`, `[rows, columns]` or
/// wider. The file holds the whole matrix; it is cut when the session is created.
pub(super) fn linear_of_first(
    graph: &mut GraphBuilder,
    input: &str,
    weight: TensorProto,
    columns: usize,
) -> String {
    let is_whole = weight.dims.last() == Some(&signed(columns));
    let mut weight = float_weight(graph, weight);
    if !is_whole {
        let (start, end, axis) =
            (graph.ints(&[0]), graph.ints(&[signed(columns)]), graph.ints(&[1]));
        weight = graph.node("Slice", &[&weight, &start, &end, &axis], &[]);
    }
    let weight = transposed(graph, &weight);
    graph.node("MatMul", &[input, &weight], &[])
}
