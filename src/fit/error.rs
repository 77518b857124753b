//! Errors of offline work.

use std::path::PathBuf;

use crate::{
    arch::ArchError, family::FamilyError, offer::OfferError, plan::PlanError, pool::PoolError,
    runtime::RuntimeError,
};

/// Error for offline work that stops early.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A file cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the error.
        reason: std::io::Error,
    },
    /// A file does not parse.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Message of the parser.
        message: String,
    },
    /// The work was cancelled.
    #[error("stopped before it was done")]
    Stopped,
    /// There are too few texts or images for the work.
    #[error("{what} needs at least {needed} {examples}, but there are {found}")]
    TooFew {
        /// Name of the work.
        what: String,
        /// Number of texts or images that the work needs.
        needed: usize,
        /// Number of texts or images that are there.
        found: usize,
        /// Word for the examples: `texts` or `images`.
        examples: &'static str,
    },
    /// A text cannot be tokenized.
    #[error("a text cannot be tokenized: {0}")]
    Tokenize(String),
    /// A system of equations has no solution.
    #[error("the normal equations of `{map}` cannot be solved; raise the regularisation")]
    Singular {
        /// Name of the map.
        map: String,
    },
    /// A map of tokens joins anchors whose tokenizers differ.
    #[error("`{from}` to `{to}`: the tokenizers differ, so only a `pooled` map can be fitted")]
    TokenizersDiffer {
        /// Name of the space at the map's start.
        from: String,
        /// Name of the space at the map's end.
        to: String,
    },
    /// A plan cannot be written as one model.
    #[error("the plan cannot be exported: {reason}")]
    Export {
        /// Reason for the refusal.
        reason: String,
    },
    /// The family lacks a part that the work needs.
    #[error("{0}")]
    Family(String),
    /// A file of the pool cannot be read or written.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The plans that serving chooses from cannot be computed.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// A plan id does not lead anywhere.
    #[error(transparent)]
    Plan(#[from] FamilyError),
    /// A family cannot be loaded.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A module cannot be run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The planner refuses its input.
    #[error(transparent)]
    Planner(#[from] PlanError),
}
