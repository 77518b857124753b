//! What can be wrong with an ONNX file.

use std::path::PathBuf;

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
}
