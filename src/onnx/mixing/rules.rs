//! Rules for the axes along which operators combine the elements of a tensor.

use std::collections::{BTreeSet, HashMap};

use crate::onnx::{
    batch::Extents,
    proto::{GraphProto, ModelProto, NodeProto, TensorProto, data_type},
};

/// Judge of the nodes of one graph, by the axes along which its tensors have rows.
pub(super) struct Rules<'a> {
    extents: &'a HashMap<String, Extents>,
    constants: HashMap<&'a str, &'a TensorProto>,
    opset: i64,
}

/// Rank of a tensor, and the axes along which its rows lie.
#[derive(Debug, Clone)]
struct Laid {
    rank: usize,
    axes: BTreeSet<usize>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(
        model: &ModelProto,
        graph: &'a GraphProto,
        extents: &'a HashMap<String, Extents>,
    ) -> Self {
        let standard = |domain: &str| matches!(domain, "" | "ai.onnx");
        let opset = model.opset_import.iter().find(|opset| standard(&opset.domain));
        let opset = opset.map_or(0, |opset| opset.version);
        Self { extents, constants: constants(graph), opset }
    }

    /// Returns the way in which `node` mixes rows, or `None` if no rule finds one.
    ///
    /// `dependent` holds for each input, by position, whether it depends on the rows.
    pub(super) fn reason(&self, node: &NodeProto, dependent: &[bool]) -> Option<String> {
        if node.op_type == "BatchNormalization" && int(node, "training_mode", 0) == 1 {
            return Some("it takes the statistics of the batch itself".into());
        }
        let laid: Vec<Option<Laid>> = node
            .input
            .iter()
            .zip(dependent)
            .map(|(name, dependent)| dependent.then(|| self.laid(name)).flatten())
            .collect();
        let with_rows = || laid.iter().flatten().filter(|laid| !laid.axes.is_empty());
        with_rows().next()?;
        for (position, laid) in laid.iter().enumerate() {
            let Some(laid) = laid else { continue };
            let combined = self.combined(node, position, laid);
            if let Some(axis) = laid.axes.intersection(&combined).next() {
                return Some(format!("it combines elements along axis {axis}, where rows lie"));
            }
        }
        let most = with_rows().map(|laid| laid.axes.len()).max().unwrap_or(0);
        let made = node.output.iter().filter(|name| !name.is_empty());
        for output in made.filter_map(|name| self.laid(name)) {
            if output.axes.is_empty() {
                return Some("rows go in, and one value for all of them comes out".into());
            }
            if output.axes.len() > most && most == 1 {
                return Some("every row meets every other".into());
            }
        }
        None
    }

    /// Returns the axes of the rows of tensor `name`, or `None` if its extents are unknown.
    fn laid(&self, name: &str) -> Option<Laid> {
        let [one, two] = self.extents.get(name)?;
        if one.len() != two.len() {
            return None;
        }
        let axes = one.iter().zip(two).enumerate().filter(|(_, (one, two))| one != two);
        Some(Laid { rank: one.len(), axes: axes.map(|(axis, _)| axis).collect() })
    }

    /// Returns the axes of the input at `position` along which `node` combines elements.
    fn combined(&self, node: &NodeProto, position: usize, laid: &Laid) -> BTreeSet<usize> {
        let rank = laid.rank;
        let axis = |default: i64| at(int(node, "axis", default), rank);
        let none = BTreeSet::new;
        match (node.op_type.as_str(), position) {
            ("MatMul" | "MatMulInteger" | "FusedMatMul" | "QLinearMatMul", _) => {
                self.contracted(node, position, rank)
            }
            ("Gemm", 0 | 1) => {
                let transposed = int(node, if position == 0 { "transA" } else { "transB" }, 0) != 0;
                [usize::from((position == 0) != transposed)].into()
            }
            ("LSTM" | "GRU" | "RNN", 0) => [usize::from(int(node, "layout", 0) != 0)].into(),
            ("Attention" | "MultiHeadAttention", _) => [rank.saturating_sub(2)].into(),
            (_, 1..) => none(),
            ("Softmax" | "LogSoftmax" | "Hardmax", _) if self.opset < 13 => {
                axis(1).map_or_else(none, |axis| (axis..rank).collect())
            }
            ("Softmax" | "LogSoftmax" | "Hardmax" | "TopK" | "LpNormalization", _) => {
                axis(-1).into_iter().collect()
            }
            ("CumSum", _) => {
                let along = node.input.get(1).and_then(|name| self.integers(name));
                along.into_iter().flatten().filter_map(|axis| at(axis, rank)).collect()
            }
            ("LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization", _) => {
                axis(-1).map_or_else(none, |axis| (axis..rank).collect())
            }
            ("MeanVarianceNormalization", _) => {
                let axes = ints(node, "axes").unwrap_or(&[0, 2, 3]);
                axes.iter().filter_map(|axis| at(*axis, rank)).collect()
            }
            ("InstanceNormalization", _) => (2..rank).collect(),
            ("GroupNormalization", _) => (1..rank).collect(),
            ("LRN", _) => [1].into(),
            ("ReverseSequence", _) => at(int(node, "time_axis", 0), rank).into_iter().collect(),
            ("Conv" | "ConvTranspose" | "ConvInteger" | "QLinearConv", _) => {
                let weight = node.input.get(if node.op_type == "QLinearConv" { 3 } else { 1 });
                let dims = weight.and_then(|name| self.dims(name)).unwrap_or_default();
                spatial(dims.get(2..).unwrap_or_default())
            }
            ("MaxPool" | "AveragePool" | "LpPool", _) => {
                spatial(ints(node, "kernel_shape").unwrap_or_default())
            }
            _ => none(),
        }
    }

    /// Returns the axis over which a matrix product sums, for the input at `position`.
    fn contracted(&self, node: &NodeProto, position: usize, rank: usize) -> BTreeSet<usize> {
        let right = if node.op_type == "QLinearMatMul" { 3 } else { 1 };
        let swapped = |name: &str| int(node, name, 0) != 0;
        let last = rank.saturating_sub(1);
        let one_before = rank.saturating_sub(2);
        match position {
            0 if swapped("transA") => [one_before].into(),
            0 => [last].into(),
            _ if position == right && swapped("transB") => [last].into(),
            _ if position == right => [one_before].into(),
            _ => BTreeSet::new(),
        }
    }

    /// Returns the extents of a constant, or the extents of another tensor for a batch of one.
    fn dims(&self, name: &str) -> Option<Vec<i64>> {
        if let Some(tensor) = self.constants.get(name) {
            return Some(tensor.dims.clone());
        }
        let [one, _] = self.extents.get(name)?;
        one.iter().map(|extent| i64::try_from(*extent).ok()).collect()
    }

    /// Returns the values of an integer constant.
    fn integers(&self, name: &str) -> Option<Vec<i64>> {
        let tensor = self.constants.get(name)?;
        let raw = tensor.raw_data.as_deref().unwrap_or_default();
        Some(match tensor.data_type {
            data_type::INT64 if raw.is_empty() => tensor.int64_data.clone(),
            data_type::INT64 => {
                raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
            }
            data_type::INT32 if raw.is_empty() => {
                tensor.int32_data.iter().map(|value| i64::from(*value)).collect()
            }
            data_type::INT32 => {
                let values = raw.as_chunks::<4>().0.iter();
                values.map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect()
            }
            _ => return None,
        })
    }
}

/// Returns the constants of `graph` by name: initializers and the values of `Constant` nodes.
pub(super) fn constants(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    let initializers = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
    let nodes = graph.node.iter().filter(|node| node.op_type == "Constant");
    let nodes = nodes.filter_map(|node| {
        let value = node.attribute.iter().find_map(|attribute| attribute.t.as_ref())?;
        Some((node.output.first()?.as_str(), value))
    });
    initializers.chain(nodes).collect()
}

/// Returns the axes after batch and channels along which `kernel` is longer than one element.
fn spatial(kernel: &[i64]) -> BTreeSet<usize> {
    let longer = kernel.iter().enumerate().filter(|(_, extent)| **extent > 1);
    longer.map(|(index, _)| index + 2).collect()
}

/// Returns `axis` counted from the front, or `None` if it lies before the first axis.
fn at(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()
}

fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    let attribute = node.attribute.iter().find(|attribute| attribute.name == name);
    attribute.and_then(|attribute| attribute.i).unwrap_or(default)
}

fn ints<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [i64]> {
    let attribute = node.attribute.iter().find(|attribute| attribute.name == name)?;
    Some(&attribute.ints)
}
