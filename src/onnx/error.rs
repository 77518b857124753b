//! Errors for ONNX files and graphs.

use std::path::PathBuf;

use super::proto::NodeProto;

/// Supported versions of the standard's operators.
pub(super) const OPSETS: std::ops::RangeInclusive<i64> = 11..=21;

/// Error for an ONNX file or graph that is refused.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not an ONNX model.
    #[error("{}: is not an ONNX model", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Error of the decoder.
        #[source]
        source: prost::DecodeError,
    },
    /// The model has no graph.
    #[error("{}: holds no graph", path.display())]
    NoGraph {
        /// Path of the file.
        path: PathBuf,
    },
    /// A node reads a tensor that no earlier node makes.
    #[error(
        "node `{node}` reads `{tensor}`, which nothing before it makes: a cycle or a wrong name"
    )]
    Unordered {
        /// Operator and name of the node.
        node: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// Two nodes make the same tensor.
    #[error("the tensor `{tensor}` is made twice")]
    Duplicate {
        /// Name of the tensor.
        tensor: String,
    },
    /// The input passes through a control-flow node.
    #[error("the input passes through control flow, which cannot be cut: node `{node}`")]
    ControlFlow {
        /// Operator and name of the node.
        node: String,
    },
    /// A node reads a shape that cannot be computed from the batch.
    #[error("node `{node}` reads a shape: {reason}")]
    Shape {
        /// Operator and name of the node.
        node: String,
        /// Reason for the refusal.
        reason: String,
    },
    /// A piece needs the main input behind a cut.
    #[error("the cut at `{from}` is none: what follows it needs `{tensor}` as well")]
    Around {
        /// Name of the cut's tensor.
        from: String,
        /// Name of the tensor that leads around the cut.
        tensor: String,
    },
    /// A piece does not read the cut before it.
    #[error("the cuts `{from}` and `{to}` are in no order: `{to}` does not depend on `{from}`")]
    Unread {
        /// Name of the cut's tensor.
        from: String,
        /// Name of the next cut's tensor.
        to: String,
    },
    /// The opset is not supported.
    #[error("opset {found} is not supported; {OPSETS:?} are")]
    Opset {
        /// Version found in the file.
        found: i64,
    },
    /// A cut names a tensor that the graph does not have.
    #[error("there is no tensor `{tensor}` in the graph")]
    NoTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A weight is used on both sides of a cut, so a tensor leads around the cut.
    #[error(
        "the cut between `{from}` and `{to}` is none: the weight `{weight}` is used on both sides"
    )]
    Bypassed {
        /// Name of the tensor at the start of the piece; empty for the first piece.
        from: String,
        /// Name of the tensor at the end of the piece.
        to: String,
        /// Name of the weight used twice.
        weight: String,
    },
    /// An initializer has a form that is not supported.
    #[error("initializer `{name}`: {reason}")]
    Initializer {
        /// Name of the initializer.
        name: String,
        /// Reason for the refusal.
        reason: String,
    },
    /// An operator mixes the rows of a batch.
    #[error(
        "the operator `{operator}` (node `{node}`) mixes the rows of a batch: {reason}; an answer \
         would depend on what runs beside it. `tessera import --one-by-one`, or `one_by_one = \
         true` of the anchor's `onnx`, runs one row at a time"
    )]
    Mixes {
        /// Name of the operator.
        operator: String,
        /// Name of the node, or of its first output if it is unnamed.
        node: String,
        /// Way in which the operator mixes the rows.
        reason: String,
    },
    /// An operator gives different values in each run.
    #[error(
        "the operator `{operator}` (node `{node}`) {reason}, so no answer can be relied on; export \
         the network for inference"
    )]
    Unrepeatable {
        /// Name of the operator.
        operator: String,
        /// Name of the node, or of its first output if it is unnamed.
        node: String,
        /// Verb phrase for the behavior that makes runs differ.
        reason: &'static str,
    },
}

impl OnnxError {
    /// Creates the error for a `node` that mixes the rows of a batch.
    pub fn mixes(node: &NodeProto, reason: &str) -> Self {
        let operator = node.op_type.clone();
        Self::Mixes { operator, node: name_of(node), reason: reason.to_owned() }
    }

    /// Creates the error for a `node` that gives different values in each run.
    pub fn unrepeatable(node: &NodeProto, reason: &'static str) -> Self {
        Self::Unrepeatable { operator: node.op_type.clone(), node: name_of(node), reason }
    }
}

fn name_of(node: &NodeProto) -> String {
    let output = || node.output.first().cloned().unwrap_or_default();
    if node.name.is_empty() { output() } else { node.name.clone() }
}
