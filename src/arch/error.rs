//! Errors of loading a checkpoint or a family.

use std::path::PathBuf;

use crate::{family::FamilyError, onnx::OnnxError};

/// Error for a checkpoint or a family that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// The manifest or the graph is wrong.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// The manifest's modules do not form a valid graph.
    #[error("{}", path.display())]
    Graph {
        /// Path of the manifest.
        path: PathBuf,
        /// Fault of the graph.
        #[source]
        source: FamilyError,
    },
    /// An ONNX file is wrong.
    #[error("anchor `{anchor}`")]
    Onnx {
        /// Name of the anchor.
        anchor: String,
        /// Fault of the file.
        #[source]
        source: OnnxError,
    },
    /// A file is missing or cannot be read.
    #[error("{}: cannot be read; `make setup` fetches the default pool's files", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the error.
        #[source]
        source: std::io::Error,
    },
    /// A file's digest is not the expected one.
    #[error("{}: sha256 is {found}, not {expected}: truncated or altered", path.display())]
    Digest {
        /// Path of the file.
        path: PathBuf,
        /// Digest in the manifest or the record.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// The manifest has no digest for a file that it uses.
    #[error("{}: has no sha256 in the manifest", path.display())]
    NoDigest {
        /// Path of the file.
        path: PathBuf,
    },
    /// A file does not parse.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Message of the parser.
        message: String,
    },
    /// A configuration has a value that is not supported.
    #[error("{}: key `{key}` is `{value}`, but {expected}", path.display())]
    Config {
        /// Path of the file.
        path: PathBuf,
        /// Name of the key.
        key: String,
        /// Value of the key.
        value: String,
        /// Description of the valid values.
        expected: String,
    },
    /// A tensor is missing.
    #[error("{}: there is no tensor `{name}`", path.display())]
    NoTensor {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
    },
    /// A tensor's shape does not fit its place in the network.
    #[error("{}: tensor `{name}` is {found:?}, but {expected:?} is needed", path.display())]
    TensorShape {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Shape of the tensor.
        found: Vec<usize>,
        /// Shape that is needed.
        expected: Vec<usize>,
    },
    /// A tensor has an unsupported element type.
    #[error("{}: tensor `{name}` is {found}, but F32, F16 or BF16 is needed", path.display())]
    TensorType {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Element type of the tensor.
        found: String,
    },
    /// A checkpoint has a tensor that the architecture does not have.
    #[error("{}: tensor `{name}` is unknown; supported are {architecture}", path.display())]
    UnknownTensor {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Description of the supported architectures.
        architecture: &'static str,
    },
    /// A module's router does not match its experts.
    #[error("module `{module}`: {reason}")]
    Router {
        /// Name of the module.
        module: String,
        /// Reason for the refusal.
        reason: String,
    },
    /// A tensor holds an infinite value or a NaN.
    #[error("{}: tensor `{name}` holds a value that is infinite or no number", path.display())]
    NotFinite {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
    },
    /// A map names a space that does not exist, or joins spaces that it cannot join.
    #[error("the map from `{from}` to `{to}`: {reason}")]
    Map {
        /// Name of the space at the map's start.
        from: String,
        /// Name of the space at the map's end.
        to: String,
        /// Reason for the refusal.
        reason: String,
    },
}
