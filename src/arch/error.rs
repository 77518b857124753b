//! Why a checkpoint or a family cannot be loaded.

use std::path::PathBuf;

use crate::{family::FamilyError, onnx::OnnxError};

/// Why a checkpoint or a family cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// The manifest or the graph is wrong.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// The modules that a manifest makes are no graph of plans.
    #[error("{}", path.display())]
    Graph {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with the graph.
        #[source]
        source: FamilyError,
    },
    /// An ONNX file is wrong.
    #[error("anchor `{anchor}`")]
    Onnx {
        /// The anchor.
        anchor: String,
        /// What is wrong.
        #[source]
        source: OnnxError,
    },
    /// A file is missing or cannot be read.
    #[error("{}: cannot be read; `make setup` fetches the default pool's files", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A file's digest is not the expected one.
    #[error("{}: sha256 is {found}, not {expected}: truncated or altered", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// What the manifest or the record says.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The manifest has no digest for a file that it uses.
    #[error("{}: has no sha256 in the manifest", path.display())]
    NoDigest {
        /// The file.
        path: PathBuf,
    },
    /// A file does not parse.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A configuration has a value that is not supported.
    #[error("{}: key `{key}` is `{value}`, but {expected}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// A tensor is missing.
    #[error("{}: there is no tensor `{name}`", path.display())]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than its place in the network.
    #[error("{}: tensor `{name}` is {found:?}, but {expected:?} is needed", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape needed.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that is not supported here.
    #[error("{}: tensor `{name}` is {found}, but F32, F16 or BF16 is needed", path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its element type.
        found: String,
    },
    /// A checkpoint has a tensor that the architecture does not know.
    #[error("{}: tensor `{name}` is unknown; supported are {architecture}", path.display())]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is supported.
        architecture: &'static str,
    },
    /// A router and the ways that tokens may take contradict each other.
    #[error("module `{module}`: {reason}")]
    Router {
        /// The module.
        module: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor holds a value that is infinite or no number.
    #[error("{}: tensor `{name}` holds a value that is infinite or no number", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A map names a space that does not exist, or joins spaces that it cannot join.
    #[error("the map from `{from}` to `{to}`: {reason}")]
    Map {
        /// Where it starts.
        from: String,
        /// Where it ends.
        to: String,
        /// What is wrong.
        reason: String,
    },
}
