//! Residual sums and the norms that read them, as one operator.

use std::collections::{HashMap, HashSet};

use crate::onnx::{
    expand::nodes::fused,
    proto::{GraphProto, ModelProto, NodeProto},
};

/// Joins each sum of two values with the RMS norm that reads it. A token's step has many small
/// nodes, whose calls cost more than their work.
pub(super) fn join_residuals(model: &mut ModelProto) {
    let Some(graph) = &mut model.graph else { return };
    skip_identities(graph);
    // The operator takes values of one shape, which a bias does not have.
    let constants = constants(graph);
    let is_of_values =
        |(_, ends): &(_, [String; 2])| ends.iter().all(|end| !constants.contains(end));
    let sums: HashMap<String, [String; 2]> =
        graph.node.iter().filter_map(sum).filter(is_of_values).collect();
    let mut joined = HashSet::new();
    for node in &mut graph.node {
        let [value, scale] = &node.input[..] else { continue };
        let Some([left, right]) = sums.get(value) else { continue };
        if is_norm(node) && joined.insert(value.clone()) {
            let outputs = [node.output[0].as_str(), "", "", value];
            let epsilon = node.attribute.iter().filter(|own| own.name == "epsilon");
            let operator =
                fused("SkipSimplifiedLayerNormalization", &[left, right, scale], "", &[]);
            *node = NodeProto {
                output: outputs.map(str::to_owned).to_vec(),
                name: node.name.clone(),
                attribute: epsilon.cloned().collect(),
                ..operator
            };
        }
    }
    let is_sum = |node: &NodeProto| sum(node).is_some_and(|(output, _)| joined.contains(&output));
    graph.node.retain(|node| !is_sum(node));
}

/// Returns the names of weights, and of values that are made of them alone.
fn constants(graph: &GraphProto) -> HashSet<String> {
    let mut found: HashSet<String> =
        graph.initializer.iter().map(|weight| weight.name.clone()).collect();
    for node in &graph.node {
        if !node.input.is_empty() && node.input.iter().all(|input| found.contains(input)) {
            found.extend(node.output.iter().cloned());
        }
    }
    found
}

/// Returns the output and the inputs of a node that adds.
fn sum(node: &NodeProto) -> Option<(String, [String; 2])> {
    let ([left, right], [output]) = (&node.input[..], &node.output[..]) else { return None };
    (node.op_type == "Add").then(|| (output.clone(), [left.clone(), right.clone()]))
}

fn is_norm(node: &NodeProto) -> bool {
    let is_last = |node: &NodeProto| {
        let mut axes = node.attribute.iter().filter(|own| own.name == "axis");
        axes.all(|axis| axis.i == Some(-1))
    };
    node.op_type == "SimplifiedLayerNormalization" && node.output.len() == 1 && is_last(node)
}

/// Takes out nodes that copy a value which is no output of the graph.
fn skip_identities(graph: &mut GraphProto) {
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let mut sources: HashMap<String, String> = HashMap::new();
    let mut kept = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        for input in &mut node.input {
            if let Some(source) = sources.get(input) {
                input.clone_from(source);
            }
        }
        match (node.op_type.as_str(), &node.input[..], &node.output[..]) {
            ("Identity", [input], [output]) if !outputs.contains(output.as_str()) => {
                sources.insert(output.clone(), input.clone());
            }
            _ => kept.push(node),
        }
    }
    graph.node = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{Attribute, GraphBuilder, proto::data_type};

    #[test]
    fn a_sum_that_a_norm_reads_is_joined_with_it_and_stays_readable() {
        let mut graph = GraphBuilder::default();
        let hidden = graph.input("hidden", data_type::FLOAT, &[None, Some(4)]);
        let other = graph.input("other", data_type::FLOAT, &[None, Some(4)]);
        let scale = graph.floats(vec![4], &[1.0; 4]);
        let sum = graph.node("Add", &[&hidden, &other], &[]);
        let same = graph.node("Identity", &[&sum], &[]);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(0.5))];
        let norm = graph.node("SimplifiedLayerNormalization", &[&same, &scale], &attributes);
        let last = graph.node("Add", &[&same, &norm], &[]);
        let mut model = graph.finish(&last, "output", &[None, Some(4)]);
        join_residuals(&mut model);
        let nodes = model.graph.expect("a graph").node;
        let ops: Vec<&str> = nodes.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(ops, ["SkipSimplifiedLayerNormalization", "Add", "Identity"]);
        assert_eq!(nodes[0].input, [hidden, other, scale]);
        assert_eq!(nodes[0].output, [norm.clone(), String::new(), String::new(), sum.clone()]);
        assert_eq!(nodes[0].attribute.len(), 1, "the epsilon");
        assert_eq!(nodes[1].input, [sum, norm]);
    }

    #[test]
    fn a_bias_is_added_apart() {
        let mut graph = GraphBuilder::default();
        let hidden = graph.input("hidden", data_type::FLOAT, &[None, Some(4)]);
        let bias = graph.floats(vec![4], &[1.0; 4]);
        let wide = graph.node("Cast", &[&bias], &[("to", Attribute::Int(1))]);
        let sum = graph.node("Add", &[&hidden, &wide], &[]);
        let norm = graph.node("SimplifiedLayerNormalization", &[&sum, &bias], &[]);
        let mut model = graph.finish(&norm, "output", &[None, Some(4)]);
        join_residuals(&mut model);
        assert_eq!(model.graph.expect("a graph").node[1].op_type, "Add");
    }
}
