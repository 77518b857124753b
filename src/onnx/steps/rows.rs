//! Graphs over rows as graphs over a batch of one.

use crate::{
    onnx::{
        expand::nodes::{ints, node},
        proto::{GraphProto, ModelProto, ValueInfoProto, data_type},
    },
    tensor::signed,
};

/// Gives the hidden states of `model`, which are rows `[tokens, width]`, a first axis of 1. They
/// are its first input and its last output.
pub(super) fn batch_rows(model: &mut ModelProto) {
    let Some(graph) = &mut model.graph else { return };
    let ends = graph.input.first_mut().zip(graph.output.last_mut());
    let Some((input, output)) = ends else { return };
    let Some([from, to]) = width(input).zip(width(output)).map(<[usize; 2]>::from) else { return };
    let names = [input.name.clone(), output.name.clone()];
    let declared = |name: &str, width: usize| {
        ValueInfoProto::tensor(name, data_type::FLOAT, &[Some(1), None, Some(signed(width))])
    };
    (*input, *output) = (declared(&names[0], from), declared(&names[1], to));
    let rows = names.each_ref().map(|name| format!("{name}.rows"));
    for node in &mut graph.node {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(place) = names.iter().position(|own| own == name) {
                name.clone_from(&rows[place]);
            }
        }
    }
    reshape(graph, 0, [&names[0], &rows[0]], &[-1, signed(from)]);
    reshape(graph, graph.node.len(), [&rows[1], &names[1]], &[1, -1, signed(to)]);
}

/// Returns the last extent of rows, or `None` if `value` is none.
fn width(value: &ValueInfoProto) -> Option<usize> {
    match value.extents()?[..] {
        [_, width] => width,
        _ => None,
    }
}

/// Adds a node at `place` that gives a value the extents `shape` under another name.
fn reshape(graph: &mut GraphProto, place: usize, [from, to]: [&str; 2], shape: &[i64]) {
    let extents = format!("{to}.extents");
    graph.initializer.push(ints(&extents, shape));
    graph.node.insert(place, node("Reshape", &[from, &extents], &[to]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{GraphBuilder, proto::data_type};

    #[test]
    fn rows_get_a_batch_of_one() {
        let mut graph = GraphBuilder::default();
        let hidden = graph.input("hidden", data_type::FLOAT, &[None, Some(4)]);
        let other = graph.input("other", data_type::FLOAT, &[None, Some(4)]);
        let sum = graph.node("Add", &[&hidden, &other], &[]);
        let mut model = graph.finish(&sum, "output", &[None, Some(4)]);
        batch_rows(&mut model);
        let graph = model.graph.expect("a graph");
        let ops: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(ops, ["Reshape", "Add", "Identity", "Reshape"]);
        assert_eq!(graph.input[0].extents(), Some(vec![Some(1), None, Some(4)]));
        assert_eq!(graph.input[1].extents(), Some(vec![None, Some(4)]));
        assert_eq!(graph.output[0].extents(), Some(vec![Some(1), None, Some(4)]));
        assert_eq!(graph.node[1].input, ["hidden.rows", "other"]);
    }
}
