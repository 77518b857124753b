//! Errors of a load.

use std::path::PathBuf;

/// Error for a load that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server does not answer.
    #[error("cannot ask {url}")]
    Unreachable {
        /// Requested URL.
        url: String,
        /// Cause of the failure.
        source: reqwest::Error,
    },
    /// The server gives an answer that cannot be used.
    #[error("{url} answers {status}: {body}")]
    Refused {
        /// Requested URL.
        url: String,
        /// HTTP status of the answer.
        status: u16,
        /// Body of the answer.
        body: String,
    },
    /// The family has no input for which the driver can make values.
    #[error("model `{family}` has no input `text` or `pixel_values` that could be made up")]
    UnknownInput {
        /// Name of the family.
        family: String,
    },
    /// A trace cannot be read.
    #[error("cannot read {path}")]
    Trace {
        /// Path of the trace.
        path: PathBuf,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// A trace is not a list of times.
    #[error("{path}, line {line}: {reason}")]
    MalformedTrace {
        /// Path of the trace.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// Reason why the line is refused.
        reason: &'static str,
    },
}
