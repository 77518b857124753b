//! Errors of the plans that serving chooses from.

use crate::{family::FamilyError, plan::PlanError, pool::PoolError};

/// Error of reading or computing what serving chooses from.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// A record cannot be read or written.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A measured plan leads nowhere.
    #[error(transparent)]
    Plan(#[from] FamilyError),
    /// The planner refuses the graph.
    #[error(transparent)]
    Planner(#[from] PlanError),
}
