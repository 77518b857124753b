//! What can go wrong with a load.

use std::path::PathBuf;

/// Why a load cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server does not answer.
    #[error("cannot ask {url}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answers something that cannot be used.
    #[error("{url} answers {status}: {body}")]
    Refused {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// What it says.
        body: String,
    },
    /// The family has no input for which the driver can make values.
    #[error("model `{family}` has no input `text` or `pixel_values` that could be made up")]
    UnknownInput {
        /// The family.
        family: String,
    },
    /// A trace cannot be read.
    #[error("cannot read {path}")]
    Trace {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A trace is no list of times.
    #[error("{path}, line {line}: {reason}")]
    MalformedTrace {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
}
