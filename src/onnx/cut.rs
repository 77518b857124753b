//! Taking a graph apart at named tensors.

use std::collections::{HashMap, HashSet};

use super::{
    OnnxError,
    external::place_of,
    proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto, data_type},
};

/// Cuts `model` at `cuts`, in order, into one more pieces than cuts; the last ends in `output`.
///
/// A piece's inputs are the cut before it and those of the model's inputs that it needs: what
/// depends on the inputs only, such as an attention mask, is computed again in each piece. Every
/// cut tensor and the output are taken to be `[batch, tokens, width]` in f32.
///
/// # Errors
///
/// Fails when a tensor does not exist, and when a weight is used on both sides of a cut, which
/// means that a tensor leads around it.
pub fn cut(
    model: &ModelProto,
    cuts: &[&str],
    output: &str,
    width: i64,
) -> Result<Vec<ModelProto>, OnnxError> {
    let empty = GraphProto::default();
    let source = Source::new(model.graph.as_ref().unwrap_or(&empty));
    let mut used: HashSet<String> = HashSet::new();
    let mut pieces = Vec::new();
    let ends = cuts.iter().copied().map(Some).chain([None]);
    let starts = [None].into_iter().chain(cuts.iter().copied().map(Some));
    for (start, end) in starts.zip(ends) {
        let target = end.unwrap_or(output);
        let mut graph = source.piece(start, target)?;
        for tensor in graph.initializer.iter().filter(|tensor| place_of(tensor).is_some()) {
            if !used.insert(tensor.name.clone()) {
                return Err(OnnxError::Bypassed {
                    from: start.unwrap_or_default().into(),
                    to: target.into(),
                    weight: tensor.name.clone(),
                });
            }
        }
        let hidden = [None, None, Some(width)];
        if let Some(start) = start {
            graph.input.insert(0, ValueInfoProto::tensor(start, data_type::FLOAT, &hidden));
        }
        graph.output = vec![ValueInfoProto::tensor(target, data_type::FLOAT, &hidden)];
        pieces.push(ModelProto { graph: Some(graph), ..without_graph(model) });
    }
    Ok(pieces)
}

/// The graph to be cut, with its tensors by name.
struct Source<'a> {
    graph: &'a GraphProto,
    producer: HashMap<&'a str, usize>,
}

impl<'a> Source<'a> {
    fn new(graph: &'a GraphProto) -> Self {
        let producer = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(index, node)| node.output.iter().map(move |o| (o.as_str(), index)))
            .collect();
        Self { graph, producer }
    }

    /// Returns what lies between `start` and `end`, without the declaration of either.
    fn piece(&self, start: Option<&str>, end: &str) -> Result<GraphProto, OnnxError> {
        for tensor in start.into_iter().chain([end]) {
            if !self.producer.contains_key(tensor) {
                return Err(OnnxError::NoTensor { tensor: tensor.into() });
            }
        }
        let mut nodes = HashSet::new();
        let mut tensors = HashSet::new();
        let mut open = vec![end];
        while let Some(tensor) = open.pop() {
            if Some(tensor) == start || !tensors.insert(tensor) {
                continue;
            }
            if let Some(index) = self.producer.get(tensor).filter(|index| nodes.insert(**index)) {
                open.extend(reads(&self.graph.node[*index]));
            }
        }
        let keep = |index: &usize| nodes.contains(index);
        Ok(GraphProto {
            name: format!("{} to {end}", start.unwrap_or("inputs")),
            node: (0..self.graph.node.len())
                .filter(keep)
                .map(|index| self.graph.node[index].clone())
                .collect(),
            initializer: self
                .graph
                .initializer
                .iter()
                .filter(|tensor| tensors.contains(tensor.name.as_str()))
                .cloned()
                .collect(),
            input: self
                .graph
                .input
                .iter()
                .filter(|input| tensors.contains(input.name.as_str()))
                .cloned()
                .collect(),
            ..GraphProto::default()
        })
    }
}

/// Returns the names that a node reads, those that its inner graphs take from outside included.
fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).collect();
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            names.extend(graph.node.iter().flat_map(reads));
            names.extend(graph.output.iter().map(|output| output.name.as_str()));
        }
    }
    names
}

fn without_graph(model: &ModelProto) -> ModelProto {
    ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        producer_name: model.producer_name.clone(),
        graph: None,
        metadata_props: Vec::new(),
    }
}
