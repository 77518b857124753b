//! What can be wrong with an ONNX file.

use std::path::PathBuf;

use super::proto::NodeProto;

/// The versions of the standard's operators that are read.
pub(super) const OPSETS: std::ops::RangeInclusive<i64> = 11..=21;

/// Why an ONNX file or graph is refused.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is no ONNX model.
    #[error("{}: is no ONNX model", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        #[source]
        source: prost::DecodeError,
    },
    /// The model has no graph.
    #[error("{}: holds no graph", path.display())]
    NoGraph {
        /// The file.
        path: PathBuf,
    },
    /// A node reads a tensor that nothing before it makes.
    #[error(
        "node `{node}` reads `{tensor}`, which nothing before it makes: a cycle or a wrong name"
    )]
    Unordered {
        /// The node.
        node: String,
        /// The tensor.
        tensor: String,
    },
    /// Two nodes make the same tensor.
    #[error("the tensor `{tensor}` is made twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// The input passes through a node that chooses what runs.
    #[error("the input passes through control flow, which cannot be cut: node `{node}`")]
    ControlFlow {
        /// The node.
        node: String,
    },
    /// A node reads a shape that cannot be told from the batch.
    #[error("node `{node}` reads a shape: {reason}")]
    Shape {
        /// The node.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// A piece needs the main input behind a cut.
    #[error("the cut at `{from}` is none: what follows it needs `{tensor}` as well")]
    Around {
        /// The cut's tensor.
        from: String,
        /// What leads around it.
        tensor: String,
    },
    /// A piece does not read the cut before it.
    #[error("the cuts `{from}` and `{to}` are in no order: `{to}` does not depend on `{from}`")]
    Unread {
        /// The cut's tensor.
        from: String,
        /// The next cut's tensor.
        to: String,
    },
    /// The opset is not supported.
    #[error("opset {found} is not supported; {OPSETS:?} are")]
    Opset {
        /// The version found.
        found: i64,
    },
    /// A cut names a tensor that the graph does not have.
    #[error("there is no tensor `{tensor}` in the graph")]
    NoTensor {
        /// The tensor.
        tensor: String,
    },
    /// A weight is used on both sides of a cut, so a tensor leads around it.
    #[error(
        "the cut between `{from}` and `{to}` is none: the weight `{weight}` is used on both sides"
    )]
    Bypassed {
        /// The cut's tensor.
        from: String,
        /// The next cut's tensor.
        to: String,
        /// The weight used twice.
        weight: String,
    },
    /// An initializer has a form that is not supported.
    #[error("initializer `{name}`: {reason}")]
    Initializer {
        /// The initializer.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An operator mixes the rows of a batch.
    #[error(
        "the operator `{operator}` (node `{node}`) mixes the rows of a batch: {reason}; an answer \
         would depend on what runs beside it. `tessera import --one-by-one`, or `one_by_one = \
         true` of the anchor's `onnx`, runs one row at a time"
    )]
    Mixes {
        /// The operator.
        operator: String,
        /// The node's name, or its first output where it has none.
        node: String,
        /// The way in which it mixes them.
        reason: String,
    },
    /// An operator does not give the same twice.
    #[error(
        "the operator `{operator}` (node `{node}`) {reason}, so no answer can be relied on; export \
         the network for inference"
    )]
    Unrepeatable {
        /// The operator.
        operator: String,
        /// The node's name, or its first output where it has none.
        node: String,
        /// What it does instead.
        reason: &'static str,
    },
}

impl OnnxError {
    /// Creates the error for a `node` that mixes rows.
    pub fn mixes(node: &NodeProto, reason: &str) -> Self {
        let operator = node.op_type.clone();
        Self::Mixes { operator, node: name_of(node), reason: reason.to_owned() }
    }

    /// Creates the error for a `node` that does not give the same twice.
    pub fn unrepeatable(node: &NodeProto, reason: &'static str) -> Self {
        Self::Unrepeatable { operator: node.op_type.clone(), node: name_of(node), reason }
    }
}

fn name_of(node: &NodeProto) -> String {
    let output = || node.output.first().cloned().unwrap_or_default();
    if node.name.is_empty() { output() } else { node.name.clone() }
}
