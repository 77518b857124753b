//! The closed set of ways in which a request can fail.

use std::time::Duration;

use crate::{
    plan::{BudgetError, ChooseError},
    runtime::RuntimeError,
};

/// What kind of failure an error is; the wire protocols map it, exhaustively, at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// An unknown input, a wrong dtype or shape, a malformed body.
    InvalidArgument,
    /// A missing or wrong token.
    Unauthenticated,
    /// A token that does not allow this.
    PermissionDenied,
    /// An unknown family, version or plan.
    NotFound,
    /// A body or tensor over its limit.
    TooLarge,
    /// No plan meets the budget.
    BudgetInfeasible,
    /// The queue is full, or the deadline cannot be met any more.
    Overloaded,
    /// The client is gone.
    Cancelled,
    /// A backend failure or a broken invariant.
    Internal,
    /// Loading, draining or failed to load.
    Unavailable,
    /// The deadline passed in the queue or in execution.
    DeadlineExceeded,
}

impl ErrorCode {
    /// Returns the name in snake case, as error bodies and metric labels write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::BudgetInfeasible => "budget_infeasible",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
        }
    }
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no such family.
    #[error("there is no model `{name}`; there are: {known}")]
    UnknownFamily {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The family does not answer.
    #[error("model `{name}` is not available: {state}")]
    Unavailable {
        /// The family.
        name: String,
        /// Whether it is loading, did not load or is unloaded.
        state: &'static str,
    },
    /// The family cannot be loaded; the one that was served before still is.
    #[error("model `{name}` cannot be loaded; the log says why")]
    LoadFailed {
        /// The family.
        name: String,
        /// Why, for the log.
        reason: String,
    },
    /// An input is not one of the family's, is missing, or comes with one that excludes it.
    #[error("input `{name}`: {reason}")]
    Input {
        /// The input.
        name: String,
        /// What is wrong, and what would be valid.
        reason: String,
    },
    /// Something is over its limit.
    #[error("{what} is {found}, over the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How large it is.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A budget is no number that makes sense.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// No plan meets the budget, or the plan asked for does not exist.
    #[error(transparent)]
    Choose(Box<ChooseError>),
    /// The plan asked for does not exist.
    #[error("{reason}")]
    UnknownPlan {
        /// What is wrong with it.
        reason: String,
    },
    /// The queue is full.
    #[error("the queue of {limit} requests is full")]
    QueueFull {
        /// How many requests it holds.
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// Too much is to be done before it.
    #[error("too many requests are before this one for its latency budget")]
    Late {
        /// When to try again.
        retry_after: Duration,
    },
    /// The server is stopping.
    #[error("the server is draining")]
    Draining,
    /// The client went away before its request ran.
    #[error("the client is gone")]
    Cancelled,
    /// The request waited longer than requests may.
    #[error("the request waited for {waited:?} without being run")]
    DeadlineExceeded {
        /// How long it waited.
        waited: Duration,
    },
    /// The model overflows on an input, or its weights are broken.
    #[error("the plan `{plan}` gives a value that is not a finite number")]
    NotFinite {
        /// The plan.
        plan: String,
    },
    /// A module failed.
    #[error("inference failed")]
    Runtime(#[from] RuntimeError),
    /// The inference thread panicked on it; the next requests are answered.
    #[error("inference panicked")]
    Panicked,
    /// The inference thread is gone.
    #[error("the inference thread is gone")]
    WorkerGone,
}

impl From<ChooseError> for ServeError {
    fn from(error: ChooseError) -> Self {
        Self::Choose(Box::new(error))
    }
}

impl ServeError {
    /// Returns what kind of failure this is.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownFamily { .. } | Self::UnknownPlan { .. } => ErrorCode::NotFound,
            Self::Unavailable { .. } | Self::LoadFailed { .. } | Self::Draining => {
                ErrorCode::Unavailable
            }
            Self::Input { .. } | Self::Budget(_) => ErrorCode::InvalidArgument,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::Choose(error) => match **error {
                ChooseError::NotFound { .. } => ErrorCode::NotFound,
                ChooseError::Infeasible(_) => ErrorCode::BudgetInfeasible,
            },
            Self::QueueFull { .. } | Self::Late { .. } => ErrorCode::Overloaded,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::DeadlineExceeded { .. } => ErrorCode::DeadlineExceeded,
            Self::NotFinite { .. } | Self::Runtime(_) | Self::Panicked | Self::WorkerGone => {
                ErrorCode::Internal
            }
        }
    }
}
