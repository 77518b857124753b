//! Errors of loading a checkpoint or a family.

use std::path::PathBuf;

use super::{ModuleError, PoolError};
use crate::{family::FamilyError, onnx::OnnxError};

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
