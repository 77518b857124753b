//! Errors of loading a checkpoint or a family.

use std::path::PathBuf;

use crate::{
    family::{FamilyError, Fault},
    module::ModuleError,
    onnx::OnnxError,
    pool::PoolError,
};

/// Error of loading a checkpoint or a family.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// A file of the pool is wrong.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A module contradicts itself.
    #[error(transparent)]
    Module(#[from] ModuleError),
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
    /// A configuration has a value that is not supported.
    #[error("{}: {fault}", path.display())]
    Config {
        /// Path of the file.
        path: PathBuf,
        /// The key, its value and the valid values.
        fault: Fault,
    },
    /// A checkpoint has a tensor that the architecture does not know.
    #[error("{}: tensor `{name}` is unknown; supported are {architecture}", path.display())]
    UnknownTensor {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Description of the supported architectures.
        architecture: &'static str,
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
