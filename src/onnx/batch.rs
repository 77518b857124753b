//! Making a network's shapes depend only on the batch, so that its pieces can run alone.
//!
//! Exported networks compute the shapes for `Reshape` from their first input. That input is not
//! available behind a cut. Every such shape is replaced by the measured one: constants, and
//! multiples of the batch. Each piece reads the batch off the first axis of its own input.

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    OnnxError,
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_type, data_type,
    },
};
use crate::tensor::signed;

/// Name of the tensor that holds the batch, `[1]` INT64.
pub(super) const BATCH: &str = "tessera.batch";

/// Name of the constant `[0]`, which picks the batch out of a shape.
const FIRST: &str = "tessera.first";

/// Extents of a tensor for a batch of one and for a batch of two.
pub type Extents = [Vec<usize>; 2];

/// Returns the names of the tensors whose shapes `model` reads.
pub fn shape_reads(model: &ModelProto) -> Vec<String> {
    let nodes = model.graph.iter().flat_map(|graph| &graph.node);
    let readers = nodes.filter(|node| matches!(node.op_type.as_str(), "Shape" | "Size"));
    let mut found: Vec<String> = readers.filter_map(|node| node.input.first().cloned()).collect();
    found.sort();
    found.dedup();
    found
}

/// Replaces every shape that `model` reads by constants and multiples of the batch of `input`.
///
/// # Errors
///
/// Fails on a shape that is missing in `extents` or is not a constant or a multiple of the batch.
/// Fails on a `Size` node that reads a tensor other than an initializer.
pub fn fix_shapes(
    model: &mut ModelProto,
    input: &str,
    extents: &HashMap<String, Extents>,
) -> Result<(), OnnxError> {
    let Some(graph) = &mut model.graph else {
        return Ok(());
    };
    let is_initializer =
        |name: &str, graph: &GraphProto| graph.initializer.iter().any(|tensor| tensor.name == name);
    let mut constants = Constants::default();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let read = node.input.first().map(String::as_str).unwrap_or_default();
        match node.op_type.as_str() {
            "Shape" if !is_initializer(read, graph) => {
                let known = extents.get(read).ok_or_else(|| odd(&node, "its shape is unknown"))?;
                nodes.extend(shape_nodes(&node, known, &mut constants)?);
            }
            "Size" if !is_initializer(read, graph) => {
                return Err(odd(&node, "it counts elements, which is not supported"));
            }
            _ => nodes.push(node),
        }
    }
    graph.initializer.extend(constants.tensors);
    graph.initializer.push(integers(FIRST, &[0]));
    graph.node = batch_nodes(input).into_iter().chain(nodes).collect();
    Ok(())
}

/// Returns the nodes that read the batch off the first axis of `tensor`.
pub(super) fn batch_nodes(tensor: &str) -> [NodeProto; 2] {
    let shape = "tessera.shape";
    [node("Shape", &[tensor], shape, &[]), node("Gather", &[shape, FIRST], BATCH, &[("axis", 0)])]
}

/// Returns the constant that the nodes of [`batch_nodes`] read.
pub(super) fn batch_constant() -> TensorProto {
    integers(FIRST, &[0])
}

/// Constants for extents; each value has one.
#[derive(Default)]
struct Constants {
    tensors: Vec<TensorProto>,
}

impl Constants {
    fn of(&mut self, value: usize) -> String {
        let name = format!("tessera.extent.{value}");
        if !self.tensors.iter().any(|tensor| tensor.name == name) {
            self.tensors.push(integers(&name, &[signed(value)]));
        }
        name
    }
}

/// Creates the nodes that build a shape from constants and the batch.
fn shape_nodes(
    shape: &NodeProto,
    [one, two]: &Extents,
    constants: &mut Constants,
) -> Result<Vec<NodeProto>, OnnxError> {
    let rank = one.len();
    let bound = |name: &str, default: usize| {
        let attribute = shape.attribute.iter().find(|attribute| attribute.name == name);
        let Some(value) = attribute.and_then(|attribute| attribute.i) else { return default };
        let rank = signed(rank);
        let value = if value < 0 { value + rank } else { value };
        usize::try_from(value.clamp(0, rank)).unwrap_or(default)
    };
    let range = bound("start", 0)..bound("end", rank);
    let output = shape.output.first().cloned().unwrap_or_default();
    let mut nodes = Vec::new();
    let mut parts = Vec::new();
    for axis in range {
        let (single, double) = (one[axis], two.get(axis).copied().unwrap_or(0));
        parts.push(if single == double {
            constants.of(single)
        } else if double == 2 * single {
            let factor = constants.of(single);
            let name = format!("{output}/axis_{axis}");
            nodes.push(node("Mul", &[BATCH, &factor], &name, &[]));
            name
        } else {
            let reason = format!("axis {axis} is {single} for one input and {double} for two");
            return Err(odd(shape, &reason));
        });
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    nodes.push(node("Concat", &parts, &output, &[("axis", 0)]));
    Ok(nodes)
}

fn odd(node: &NodeProto, reason: &str) -> OnnxError {
    let (node, reason) = (format!("{} {}", node.op_type, node.name), reason.to_owned());
    OnnxError::Shape { node, reason }
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> NodeProto {
    let attribute = |(name, value): &(&str, i64)| AttributeProto {
        name: (*name).into(),
        i: Some(*value),
        r#type: attribute_type::INT,
        ..AttributeProto::default()
    };
    NodeProto {
        input: inputs.iter().map(|&input| input.into()).collect(),
        output: vec![output.into()],
        name: format!("{output}/{op}"),
        op_type: op.into(),
        attribute: attributes.iter().map(attribute).collect(),
        ..NodeProto::default()
    }
}

fn integers(name: &str, values: &[i64]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorProto {
        name: name.into(),
        data_type: data_type::INT64,
        dims: vec![values.len() as i64],
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::GraphBuilder;

    fn reshaped() -> ModelProto {
        let mut graph = GraphBuilder::default();
        let x = graph.input("x", data_type::FLOAT, &[None, Some(2), Some(3)]);
        let shape = graph.node("Shape", &[&x], &[]);
        let flat = graph.ints(&[-1]);
        let flat = graph.node("Reshape", &[&x, &flat], &[]);
        let again = graph.node("Reshape", &[&flat, &shape], &[]);
        graph.finish(&again, "y", &[None, Some(2), Some(3)])
    }

    #[test]
    fn shapes_become_constants_and_multiples_of_the_batch() {
        let mut model = reshaped();
        assert_eq!(shape_reads(&model), ["x"]);
        let known = HashMap::from([("x".to_owned(), [vec![4, 2, 3], vec![8, 2, 3]])]);
        fix_shapes(&mut model, "x", &known).expect("it grows with the batch");
        let graph = model.graph.expect("a graph");
        let ops: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(ops[..4], ["Shape", "Gather", "Mul", "Concat"]);
        let names: Vec<&str> = graph.node[3].input.iter().map(String::as_str).collect();
        assert_eq!(names, ["Shape_1/axis_0", "tessera.extent.2", "tessera.extent.3"]);
    }

    #[test]
    fn shapes_that_grow_otherwise_are_refused_by_the_node() {
        for (known, reason) in [
            (HashMap::new(), "its shape is unknown"),
            (HashMap::from([("x".to_owned(), [vec![1, 2], vec![3, 2]])]), "axis 0 is 1"),
        ] {
            let error = fix_shapes(&mut reshaped(), "x", &known).expect_err(reason).to_string();
            assert!(error.contains(reason) && error.contains("Shape"), "{error}");
        }
    }
}
