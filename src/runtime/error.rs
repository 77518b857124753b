//! Errors of running a path.

use std::path::PathBuf;

use crate::{module::ModuleError, onnx::OnnxError, plan::Continuation};

/// Error for a runtime that does not start or a module that does not run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// ONNX Runtime was not found.
    #[error(
        "ONNX Runtime was not found; tried {tried}; run `make setup`, or give its shared library \
         with --onnxruntime or ORT_DYLIB_PATH"
    )]
    NoLibrary {
        /// The places that were searched.
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
    /// A file was changed or removed after its digest was checked.
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
    /// A module and its activations do not fit under the memory limit, even alone.
    #[error(
        "{bytes} bytes for a module and its activations are {missing} bytes more than the memory \
         limit of {limit} bytes leaves"
    )]
    MemoryLimit {
        /// Bytes of the module's weights and activations.
        bytes: u64,
        /// Missing bytes.
        missing: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// A module's network cannot be loaded.
    #[error("module `{module}` cannot be loaded")]
    Network {
        /// The module.
        module: String,
        /// The reason.
        #[source]
        source: OnnxError,
    },
    /// ONNX Runtime refuses a module's network.
    #[error("module `{module}` is refused by ONNX Runtime: {reason}")]
    Session {
        /// The module.
        module: String,
        /// The reason.
        reason: ort::Error,
    },
    /// A module failed while it ran.
    #[error("module `{module}` failed: {reason}")]
    Run {
        /// The module.
        module: String,
        /// The reason.
        reason: ort::Error,
    },
    /// An input of a module's network has no source.
    #[error(transparent)]
    Ports(#[from] ModuleError),
    /// A module needs an input that is missing.
    #[error("module `{module}` needs the input `{input}`")]
    NoInput {
        /// The module.
        module: String,
        /// The input.
        input: String,
    },
    /// A router's scores cannot be compared.
    #[error("module `{module}`: score {way} of row {row} is infinite or not a number")]
    Score {
        /// The module.
        module: String,
        /// The row, which is a token of the batch.
        row: usize,
        /// The router's output with this score.
        way: usize,
    },
    /// The outputs of a routed module's networks do not fit together.
    #[error("module `{module}`: {reason}")]
    Routed {
        /// The module.
        module: String,
        /// The fault.
        reason: &'static str,
    },
    /// A tensor cannot be passed to ONNX Runtime.
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
    /// A network that is run for its output has none.
    #[error("a network gives no output")]
    NoOutput,
    /// A module that reads hidden states is given none.
    #[error("module `{module}` is given no hidden states")]
    NoState {
        /// The module.
        module: String,
    },
    /// A sequence cannot take the step.
    #[error(
        "a sequence needs new tokens, and a cache of every earlier position; {continuation:?} \
         comes first"
    )]
    Behind {
        /// Cost of going on.
        continuation: Continuation,
    },
    /// A plan chooses a brick or an extent that no module takes.
    #[error("no module takes the choice `{choice}`")]
    Choice {
        /// The choice as `key=value`.
        choice: String,
    },
    /// The path is empty or its modules do not connect the input to the output.
    #[error("the path does not lead from the input to the output")]
    NotAPath,
}
