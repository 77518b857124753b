//! Finding operators that combine the rows of a batch, or whose results are random.
//!
//! A tensor's *rows* lie along the axes whose extents differ between a batch of one and a batch of
//! two. An operator mixes rows in three cases:
//!
//! - it combines elements along such an axis;
//! - it reads rows and makes a tensor without rows;
//! - it makes a tensor with two axes of rows.
//!
//! Every operator found here does mix rows. A network that passes must still be tested by running
//! it, because no rule knows all ways to mix rows.

mod rules;

use std::collections::{HashMap, HashSet};

use super::{
    Extents, OnnxError,
    articulation::{SHAPE_READERS, reads},
    proto::{GraphProto, ModelProto, NodeProto, TensorProto},
};
use rules::{Rules, constants};

/// Operators that draw random numbers.
const RANDOM: [&str; 6] = [
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
];

/// Operators that compute one scale from the whole tensor that they read.
const SHARED_SCALE: [&str; 3] =
    ["DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"];

/// Checks that no operator that leads to an output of `model` draws random numbers.
///
/// # Errors
///
/// Fails with the first operator that does.
pub fn check_repeatable(model: &ModelProto) -> Result<(), OnnxError> {
    let Some(graph) = &model.graph else { return Ok(()) };
    let known = constants(graph);
    let leading = leading(graph);
    let mut nodes = graph.node.iter().zip(leading).filter(|(_, leads)| *leads);
    match nodes.find_map(|(node, _)| random_in(node, &known)) {
        Some(node) => Err(OnnxError::unrepeatable(node, "draws random numbers")),
        None => Ok(()),
    }
}

/// Checks that no operator of `model` mixes the rows of its `inputs`, judged by the operators
/// alone.
///
/// # Errors
///
/// Fails with the first operator that mixes rows.
pub fn check_operators(model: &ModelProto, inputs: &[&str]) -> Result<(), OnnxError> {
    check_rows(model, inputs, &HashMap::new())
}

/// Checks that no operator of `model` mixes the rows of its `inputs`, judged by operators and
/// `extents`. Tensors that are missing in `extents` are skipped.
///
/// # Errors
///
/// Fails with the first operator that mixes rows.
pub fn check_rows(
    model: &ModelProto,
    inputs: &[&str],
    extents: &HashMap<String, Extents>,
) -> Result<(), OnnxError> {
    let Some(graph) = &model.graph else { return Ok(()) };
    let depends = depending(graph, inputs);
    let rules = Rules::new(model, graph, extents);
    let carrying = graph.node.iter().zip(leading(graph)).filter(|(node, leads)| {
        *leads && !has_shape_only(node) && node.output.iter().any(|o| depends.contains(o.as_str()))
    });
    for (node, _) in carrying {
        let read: Vec<&str> = node.input.iter().map(String::as_str).collect();
        let dependent: Vec<bool> = read.iter().map(|name| depends.contains(name)).collect();
        let shared = SHARED_SCALE.contains(&node.op_type.as_str()) && dependent[0];
        let reason = if shared {
            Some("one scale is taken from all of them".to_owned())
        } else {
            rules.reason(node, &dependent)
        };
        if let Some(reason) = reason {
            return Err(OnnxError::mixes(node, &reason));
        }
    }
    Ok(())
}

/// Returns the nodes of `graph` whose outputs depend on the elements of its `inputs`, in order.
pub fn dependent_nodes<'a>(graph: &'a GraphProto, inputs: &[&'a str]) -> Vec<&'a NodeProto> {
    let depends = depending(graph, inputs);
    let is_dependent =
        |node: &&NodeProto| node.output.iter().any(|name| depends.contains(name.as_str()));
    graph.node.iter().filter(is_dependent).collect()
}

/// Returns the names of the tensors whose elements depend on those of `inputs`, and `inputs`.
fn depending<'a>(graph: &'a GraphProto, inputs: &[&'a str]) -> HashSet<&'a str> {
    let mut depends: HashSet<&str> = inputs.iter().copied().collect();
    for node in graph.node.iter().filter(|node| !has_shape_only(node)) {
        if reads(node).into_iter().any(|name| depends.contains(name)) {
            depends.extend(node.output.iter().map(String::as_str));
        }
    }
    depends.remove("");
    depends
}

/// Returns for each node, by position, whether it leads to an output of the graph.
fn leading(graph: &GraphProto) -> Vec<bool> {
    let mut wanted: HashSet<&str> =
        graph.output.iter().map(|output| output.name.as_str()).collect();
    let mut leads = vec![false; graph.node.len()];
    for (index, node) in graph.node.iter().enumerate().rev() {
        if node.output.iter().any(|name| wanted.contains(name.as_str())) {
            leads[index] = true;
            wanted.extend(reads(node));
        }
    }
    leads
}

fn has_shape_only(node: &NodeProto) -> bool {
    SHAPE_READERS.contains(&node.op_type.as_str())
}

/// Returns `node`, or the first node inside its graphs, if it draws random numbers.
fn random_in<'a>(
    node: &'a NodeProto,
    known: &HashMap<&str, &TensorProto>,
) -> Option<&'a NodeProto> {
    let is_trained = || {
        let mode = node.input.get(2).and_then(|name| known.get(name.as_str()));
        mode.is_some_and(|mode| {
            mode.int32_data.iter().any(|value| *value != 0)
                || mode.raw_data.iter().flatten().any(|byte| *byte != 0)
        })
    };
    if RANDOM.contains(&node.op_type.as_str()) || (node.op_type == "Dropout" && is_trained()) {
        return Some(node);
    }
    let graphs = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
    graphs.flat_map(|graph| &graph.node).find_map(|inner| random_in(inner, known))
}
