//! Errors of reading and writing a pool's files.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::tensor::json;

/// Error of reading or writing a file of a pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
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
        /// Digest in the manifest or the record.
        expected: String,
        /// Digest of the file.
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
        /// Message of the parser.
        message: String,
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
    /// A tensor holds a value that is infinite or not a number.
    #[error("{}: tensor `{name}` holds a value that is infinite or not a number", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A file cannot be written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: std::io::Error,
    },
    /// Another process writes in a family's folder.
    #[error("{}: another run of tessera writes there; wait until it has ended", folder.display())]
    Locked {
        /// The family's folder.
        folder: PathBuf,
    },
}

/// Parses `text`, the JSON of the file at `path`.
///
/// # Errors
///
/// Fails on malformed JSON and on values of other types than `T` has.
pub fn parse_json<'t, T: Deserialize<'t>>(path: &Path, text: &'t str) -> Result<T, PoolError> {
    json::parse(text).map_err(|error| PoolError::malformed(path, &error))
}

impl PoolError {
    /// Returns the error of a file that does not parse.
    pub(crate) fn malformed(path: &Path, error: &impl ToString) -> Self {
        Self::Malformed { path: path.to_owned(), message: error.to_string() }
    }
}
