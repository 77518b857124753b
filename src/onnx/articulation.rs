//! Finding the tensors at which a network can be cut.
//!
//! A value *depends* on the main input when its elements do. A value that depends only on the
//! input's shape, such as the operand of a `Reshape`, does not count. Neither does a value made
//! from other inputs alone, such as an attention mask. An articulation (a dominator of the graph)
//! is a tensor through which every dependent value passes to the output.

use std::collections::{HashMap, HashSet};

use super::{
    OnnxError,
    proto::{GraphProto, ModelProto, NodeProto},
};

/// Operators that read only the shape of a tensor.
pub(super) const SHAPE_READERS: [&str; 2] = ["Shape", "Size"];

/// Operators that may follow an addition inside the same block.
const ACTIVATIONS: [&str; 8] =
    ["Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Gelu", "Elu", "PRelu"];

/// Operators with weights; a piece of a network needs at least one of them.
const PRODUCTS: [&str; 9] = [
    "Conv",
    "Gemm",
    "MatMul",
    "ConvTranspose",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "DynamicQuantizeMatMul",
];

/// A network's articulations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Articulations {
    /// Names of all articulations, in graph order.
    pub all: Vec<String>,
    /// Names of the articulations worth cutting at: the end of the stem, then the end of each
    /// block.
    pub cuts: Vec<String>,
}

/// Finds the articulations between `input` and the graph's first output.
///
/// The proposed cuts are the outputs of residual additions, or of the activations that follow them.
/// The tensor at which the first residual forks comes before them. A network without residuals is
/// cut at the ends of its layers.
///
/// # Errors
///
/// Fails when the graph has no output or no input named `input`. Fails when the output does not
/// depend on the input, and when the input passes through control flow.
pub fn articulations(model: &ModelProto, input: &str) -> Result<Articulations, OnnxError> {
    let empty = GraphProto::default();
    let graph = model.graph.as_ref().unwrap_or(&empty);
    let output = graph.output.first().map(|output| output.name.as_str()).unwrap_or_default();
    if !graph.input.iter().any(|known| known.name == input) {
        return Err(OnnxError::NoTensor { tensor: input.into() });
    }
    let flow = Flow::new(graph, input, output)?;
    if !flow.depends.contains(output) {
        return Err(OnnxError::NoTensor { tensor: output.into() });
    }
    let all = flow.articulations(output);
    let cuts = flow.choose(&all);
    Ok(Articulations { all, cuts })
}

/// Tensors and nodes of a graph that depend on the input and lead to the output.
struct Flow<'a> {
    graph: &'a GraphProto,
    /// Name of the main input.
    input: &'a str,
    /// Names of the tensors whose elements depend on the input.
    depends: HashSet<&'a str>,
    /// Whether each node, by position, carries a dependent value towards the output.
    carries: Vec<bool>,
    /// Number of carrying nodes that read each tensor.
    readers: HashMap<&'a str, usize>,
}

impl<'a> Flow<'a> {
    fn new(graph: &'a GraphProto, input: &'a str, output: &'a str) -> Result<Self, OnnxError> {
        let mut depends = HashSet::from([input]);
        for node in &graph.node {
            let reads_values = !SHAPE_READERS.contains(&node.op_type.as_str());
            let reached = reads(node).into_iter().any(|name| depends.contains(name));
            if reached && has_graphs(node) {
                return Err(OnnxError::ControlFlow {
                    node: format!("{} {}", node.op_type, node.name),
                });
            }
            if reached && reads_values {
                depends.extend(node.output.iter().map(String::as_str));
            }
        }
        let mut wanted = HashSet::from([output]);
        let mut carries = vec![false; graph.node.len()];
        for (index, node) in graph.node.iter().enumerate().rev() {
            let leads = node.output.iter().any(|name| wanted.contains(name.as_str()));
            let dependent = node.output.iter().any(|name| depends.contains(name.as_str()));
            if leads && dependent {
                carries[index] = true;
                wanted.extend(node.input.iter().map(String::as_str));
            }
        }
        let mut readers: HashMap<&str, usize> = HashMap::new();
        for (node, _) in graph.node.iter().zip(&carries).filter(|(_, carries)| **carries) {
            for name in node.input.iter().filter(|name| depends.contains(name.as_str())) {
                *readers.entry(name).or_default() += 1;
            }
        }
        Ok(Self { graph, input, depends, carries, readers })
    }

    /// Returns the articulations: tensors that are the only unread dependent value after their
    /// node.
    fn articulations(&self, output: &str) -> Vec<String> {
        let mut left = self.readers.clone();
        // What still reads the input itself cannot lie behind a cut.
        let mut open: HashSet<&str> = HashSet::from([self.input]);
        let mut found = Vec::new();
        for (node, _) in self.graph.node.iter().zip(&self.carries).filter(|(_, carries)| **carries)
        {
            for name in &node.input {
                if let Some(count) = left.get_mut(name.as_str()) {
                    *count -= 1;
                    if *count == 0 {
                        open.remove(name.as_str());
                    }
                }
            }
            let made = node.output.iter().map(String::as_str);
            open.extend(made.filter(|name| self.readers.contains_key(name)));
            if let (1, Some(only)) = (open.len(), open.iter().next())
                && *only != output
                && node.output.iter().any(|name| name == only)
            {
                found.push((*only).to_owned());
            }
        }
        found
    }

    /// Chooses the articulations worth cutting at.
    fn choose(&self, all: &[String]) -> Vec<String> {
        let position = |name: &str| all.iter().position(|known| known == name);
        let mut chosen: Vec<usize> = Vec::new();
        for node in self.carrying() {
            let is_residual = node.op_type == "Add"
                && node.input.iter().filter(|name| self.depends.contains(name.as_str())).count()
                    > 1;
            let end = node.output.first().filter(|_| is_residual);
            let end = end.map(|name| self.after_activation(name));
            chosen.extend(end.and_then(position));
        }
        if chosen.is_empty() {
            return self.layer_ends(all);
        }
        // The stem lies between the input and the first block. It ends where the residual forks.
        let fork = chosen[0].checked_sub(1);
        let inside = |from: usize, to: usize| self.has_product(&all[from], &all[to]);
        let fork = fork.and_then(|last| (0..=last).rev().find(|at| inside(*at, chosen[0])));
        let mut cuts: Vec<usize> = fork.into_iter().collect();
        for end in chosen {
            if cuts.last().is_none_or(|last| *last < end && inside(*last, end)) {
                cuts.push(end);
            }
        }
        cuts.into_iter().map(|index| all[index].clone()).collect()
    }

    fn carrying(&self) -> impl Iterator<Item = &'a NodeProto> {
        self.graph
            .node
            .iter()
            .zip(&self.carries)
            .filter(|(_, carries)| **carries)
            .map(|pair| pair.0)
    }

    /// Returns the output of the activation that is the only reader of `name`, or `name` if there
    /// is none.
    fn after_activation(&self, name: &'a str) -> &'a str {
        let mut readers = self.carrying().filter(|node| node.input.iter().any(|n| n == name));
        match (readers.next(), readers.next()) {
            (Some(node), None) if ACTIVATIONS.contains(&node.op_type.as_str()) => {
                node.output.first().map_or(name, String::as_str)
            }
            _ => name,
        }
    }

    /// Chooses cuts for a network without residuals: each piece ends after a product's activation.
    fn layer_ends(&self, all: &[String]) -> Vec<String> {
        let mut cuts: Vec<usize> = Vec::new();
        for (index, name) in all.iter().enumerate() {
            let starts = all.get(index + 1).is_some_and(|next| {
                let made_by = self.carrying().find(|node| node.output.contains(next));
                made_by.is_some_and(|node| PRODUCTS.contains(&node.op_type.as_str()))
            });
            let last = cuts.last().map(|last| all[*last].as_str());
            if starts && last.is_none_or(|last| self.has_product(last, name)) {
                cuts.push(index);
            }
        }
        cuts.into_iter().map(|index| all[index].clone()).collect()
    }

    /// Returns whether a product with weights lies between the tensors `from` and `to`.
    fn has_product(&self, from: &str, to: &str) -> bool {
        let made = |name: &str| {
            let made = |node: &NodeProto| node.output.iter().any(|output| output == name);
            self.graph.node.iter().position(made)
        };
        let (Some(start), Some(end)) = (made(from), made(to)) else {
            return false;
        };
        let between = start + 1..=end;
        self.graph.node.iter().zip(&self.carries).enumerate().any(|(index, (node, carries))| {
            between.contains(&index) && *carries && PRODUCTS.contains(&node.op_type.as_str())
        })
    }
}

/// Returns the names that `node` reads, including those that its inner graphs read from outside.
pub(super) fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).collect();
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            names.extend(graph.node.iter().flat_map(reads));
            names.extend(graph.output.iter().map(|output| output.name.as_str()));
        }
    }
    names
}

fn has_graphs(node: &NodeProto) -> bool {
    node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}

#[cfg(test)]
#[path = "articulation_tests.rs"]
mod tests;
