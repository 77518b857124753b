//! What can go wrong in offline work.

use std::path::PathBuf;

use super::OfferError;
use crate::{
    arch::{ArchError, PoolError},
    family::FamilyError,
    plan::PlanError,
    runtime::RuntimeError,
};

/// Why offline work stops.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A file does not parse.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// Whoever asked for it wants it no more.
    #[error("stopped before it was done")]
    Stopped,
    /// A corpus is too small for what is asked.
    #[error("{what} needs at least {needed} texts, but there are {found}")]
    TooFewTexts {
        /// What was asked.
        what: String,
        /// How many it needs.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// A text cannot be tokenized.
    #[error("a text cannot be tokenized: {0}")]
    Tokenize(String),
    /// A system of equations has no solution.
    #[error("the normal equations of `{map}` cannot be solved; raise the regularisation")]
    Singular {
        /// The map.
        map: String,
    },
    /// A map of tokens joins anchors that cut texts into different tokens.
    #[error("`{from}` to `{to}`: the tokenizers differ, so only a `pooled` map can be fitted")]
    TokenizersDiffer {
        /// Where the map starts.
        from: String,
        /// Where it ends.
        to: String,
    },
    /// A plan cannot be written as one model.
    #[error("the plan cannot be exported: {reason}")]
    Export {
        /// What is wrong.
        reason: String,
    },
    /// The family does not have what the work needs.
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
    /// A family does not load.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A module does not run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The planner refuses the graph.
    #[error(transparent)]
    Planner(#[from] PlanError),
}
