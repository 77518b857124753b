//! Cutting a graph into pieces at named tensors.

use std::collections::{HashMap, HashSet};

use super::{
    OnnxError,
    articulation::reads,
    batch::{BATCH, batch_constant, batch_nodes},
    external::place_of,
    proto::{GraphProto, ModelProto, ValueInfoProto, data_type},
};

/// An f32 tensor at which a graph is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutPoint {
    /// Name of the tensor.
    pub tensor: String,
    /// Extent of each axis; `None` if it may vary.
    pub shape: Vec<Option<i64>>,
}

/// Cuts `model` at `cuts`, in order, into one piece per cut; a piece ends at its cut.
///
/// A piece's inputs are the cut before it and the model inputs that it needs. Each piece computes
/// again the values that depend on model inputs only, such as an attention mask. Only the first
/// piece may read the model's `main` input, if one is named. After
/// [`fix_shapes`](super::fix_shapes), each piece reads the batch off its own input.
///
/// # Errors
///
/// Fails when a tensor does not exist, and when a piece does not read the cut before it. Fails when
/// a piece after the first reads the main input. Without `main`, fails when a large weight is used
/// by more than one piece.
pub fn cut(
    model: &ModelProto,
    cuts: &[CutPoint],
    main: Option<&str>,
) -> Result<Vec<ModelProto>, OnnxError> {
    let empty = GraphProto::default();
    let source = Source::new(model.graph.as_ref().unwrap_or(&empty), main);
    let mut used: HashSet<String> = HashSet::new();
    let mut pieces = Vec::new();
    let starts = [None].into_iter().chain(cuts.iter().map(Some));
    for (start, end) in starts.zip(cuts) {
        let mut graph = source.piece(start.map(|start| start.tensor.as_str()), &end.tensor)?;
        // Exporters store equal weights once. A shared weight indicates a bypass only if no main
        // input is named.
        let large = graph.initializer.iter().filter(|tensor| place_of(tensor).is_some());
        for tensor in large.filter(|_| main.is_none()) {
            if !used.insert(tensor.name.clone()) {
                return Err(OnnxError::Bypassed {
                    from: start.map(|start| start.tensor.clone()).unwrap_or_default(),
                    to: end.tensor.clone(),
                    weight: tensor.name.clone(),
                });
            }
        }
        let declare =
            |cut: &CutPoint| ValueInfoProto::tensor(&cut.tensor, data_type::FLOAT, &cut.shape);
        if let Some(start) = start {
            graph.input.insert(0, declare(start));
        }
        graph.output = vec![declare(end)];
        pieces.push(ModelProto { graph: Some(graph), ..without_graph(model) });
    }
    Ok(pieces)
}

/// Graph to be cut, with the node that makes each tensor.
struct Source<'a> {
    graph: &'a GraphProto,
    main: Option<&'a str>,
    producer: HashMap<&'a str, usize>,
}

impl<'a> Source<'a> {
    fn new(graph: &'a GraphProto, main: Option<&'a str>) -> Self {
        let producer = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(index, node)| node.output.iter().map(move |o| (o.as_str(), index)))
            .collect();
        Self { graph, main, producer }
    }

    /// Returns the graph between `start` and `end`, which does not yet declare either.
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
            let is_first = tensors.insert(tensor);
            // Behind a cut, the batch is read off the cut's own tensor.
            let is_known = Some(tensor) == start || (tensor == BATCH && start.is_some());
            if is_known || !is_first {
                continue;
            }
            if start.is_some() && Some(tensor) == self.main {
                return Err(self.around(start, tensor));
            }
            if let Some(index) = self.producer.get(tensor).filter(|index| nodes.insert(**index)) {
                open.extend(reads(&self.graph.node[*index]));
            }
        }
        if let Some(unread) = start.filter(|start| !tensors.contains(start)) {
            return Err(OnnxError::Unread { from: unread.into(), to: end.into() });
        }
        let mut node: Vec<_> = (0..self.graph.node.len())
            .filter(|index| nodes.contains(index))
            .map(|index| self.graph.node[index].clone())
            .collect();
        let initializers = self.graph.initializer.iter();
        let mut initializer: Vec<_> =
            initializers.filter(|tensor| tensors.contains(tensor.name.as_str())).cloned().collect();
        if let Some(start) = start.filter(|_| tensors.contains(BATCH)) {
            node.splice(0..0, batch_nodes(start));
            let constant = batch_constant();
            if !initializer.iter().any(|tensor| tensor.name == constant.name) {
                initializer.push(constant);
            }
        }
        let inputs = self.graph.input.iter();
        let input = inputs.filter(|input| tensors.contains(input.name.as_str())).cloned().collect();
        let name = format!("{} to {end}", start.unwrap_or("inputs"));
        Ok(GraphProto { name, node, initializer, input, ..GraphProto::default() })
    }

    fn around(&self, start: Option<&str>, tensor: &str) -> OnnxError {
        OnnxError::Around { from: start.unwrap_or_default().into(), tensor: tensor.into() }
    }
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
