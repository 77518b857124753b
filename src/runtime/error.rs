//! What can go wrong in running a path.

use std::path::PathBuf;

use crate::onnx::OnnxError;

/// Why the runtime cannot start or a module cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no ONNX Runtime.
    #[error(
        "ONNX Runtime was not found; tried {tried}; run `make setup`, or give its shared library \
         with --onnxruntime or ORT_DYLIB_PATH"
    )]
    NoLibrary {
        /// The places looked at.
        tried: String,
    },
    /// The library was found but does not load.
    #[error("{}: cannot be used as ONNX Runtime", path.display())]
    BadLibrary {
        /// The library.
        path: PathBuf,
        /// The reason.
        #[source]
        source: ort::Error,
    },
    /// A file is not the one whose digest was checked.
    #[error(
        "module `{module}` cannot be loaded: {} was changed or removed after its digest was \
         checked; load the family again",
        path.display()
    )]
    Changed {
        /// The module.
        module: String,
        /// The file.
        path: PathBuf,
    },
    /// A module and its activations do not fit under the memory limit, even by themselves.
    #[error(
        "{bytes} bytes for a module and its activations are {missing} bytes more than the memory \
         limit of {limit} bytes leaves"
    )]
    MemoryLimit {
        /// The bytes of its weights and activations.
        bytes: u64,
        /// The bytes that are missing.
        missing: u64,
        /// The limit.
        limit: u64,
    },
    /// A module's network cannot be made ready.
    #[error("module `{module}` cannot be loaded")]
    Network {
        /// The module.
        module: String,
        /// The reason.
        #[source]
        source: OnnxError,
    },
    /// ONNX Runtime refuses a module's network.
    #[error("module `{module}` is refused by ONNX Runtime: {source}")]
    Session {
        /// The module.
        module: String,
        /// The reason.
        #[source]
        source: ort::Error,
    },
    /// A module failed while it ran.
    #[error("module `{module}` failed: {source}")]
    Run {
        /// The module.
        module: String,
        /// The reason.
        #[source]
        source: ort::Error,
    },
    /// A module needs an input that was not given.
    #[error("module `{module}` needs the input `{input}`")]
    NoInput {
        /// The module.
        module: String,
        /// The input.
        input: String,
    },
    /// A router's scores cannot be compared.
    #[error("module `{module}`: score {way} of row {row} is infinite or no number")]
    Score {
        /// The module.
        module: String,
        /// The row: a token of the batch.
        row: usize,
        /// The router's output.
        way: usize,
    },
    /// What a routed module's networks give does not go together.
    #[error("module `{module}`: {reason}")]
    Routed {
        /// The module.
        module: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tensor cannot be handed over.
    #[error("a tensor cannot be handed to ONNX Runtime")]
    Tensor {
        /// The reason.
        #[source]
        source: ort::Error,
    },
    /// A scratch file cannot be written or read.
    #[error("a scratch file cannot be used")]
    Scratch {
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The path is empty or its modules do not join.
    #[error("the path does not lead from the input to the output")]
    NotAPath,
}
