//! Errors with which a request can fail; the set is closed.

use std::time::Duration;

use crate::{
    plan::{BudgetError, ChooseError},
    runtime::RuntimeError,
};

/// Kind of a failure. The wire protocols map every kind exhaustively at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// An unknown input, a wrong dtype or shape, a malformed body.
    InvalidArgument,
    /// A missing or wrong token.
    Unauthenticated,
    /// A token that does not permit the request.
    PermissionDenied,
    /// An unknown family, version or plan.
    NotFound,
    /// A body or tensor over its limit.
    TooLarge,
    /// A budget that no plan meets.
    BudgetInfeasible,
    /// A full queue, or a deadline that can no longer be met.
    Overloaded,
    /// A client that is gone.
    Cancelled,
    /// A backend failure or a broken invariant.
    Internal,
    /// A family that is loading or failed to load, or a server that is draining.
    Unavailable,
    /// A deadline that passed in the queue or in execution.
    DeadlineExceeded,
}

impl ErrorCode {
    /// Returns the name in snake case, as in error bodies and metric labels.
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

/// Error for a request that is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server has no such family.
    #[error("there is no model `{name}`; there are: {known}")]
    UnknownFamily {
        /// Name in the request.
        name: String,
        /// Names of the existing families.
        known: String,
    },
    /// The family does not answer.
    #[error("model `{name}` is not available: {state}")]
    Unavailable {
        /// Name of the family.
        name: String,
        /// State of the family: for example, it is loading or unloaded.
        state: &'static str,
    },
    /// The family did not load when the server started, or since then.
    #[error("model `{name}` is not available: it did not load: {reason}")]
    NotLoaded {
        /// Name of the family.
        name: String,
        /// Reason why it did not load.
        reason: String,
    },
    /// The family cannot be loaded; the one that was served before is still served.
    #[error("model `{name}` cannot be loaded: {reason}")]
    LoadFailed {
        /// Name of the family.
        name: String,
        /// Reason why it cannot.
        reason: String,
    },
    /// An input is unknown, missing or malformed, or comes with one that excludes it.
    #[error("input `{name}`: {reason}")]
    Input {
        /// Name of the input.
        name: String,
        /// Reason, with a description of valid inputs.
        reason: String,
    },
    /// The request names a prompt that its texts cannot have.
    #[error("prompt_name is `{found}`, but {reason}")]
    Prompt {
        /// Name in the request.
        found: String,
        /// Reason, with the valid names.
        reason: String,
    },
    /// A part of the request is over its limit.
    #[error("{what} is {found}, over the limit of {limit}")]
    TooLarge {
        /// Name of the part.
        what: String,
        /// Size of the part.
        found: usize,
        /// Largest size of the part.
        limit: usize,
    },
    /// A prompt and the tokens to generate do not fit into the context.
    #[error(
        "the prompt has {num_prompt} tokens and {max_tokens} are to be generated, but the context \
         holds {context}"
    )]
    Context {
        /// Most tokens of both together.
        context: usize,
        /// Number of tokens of the prompt.
        num_prompt: usize,
        /// Number of tokens to generate.
        max_tokens: usize,
    },
    /// A budget is not a valid number.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// No plan meets the budget, or the plan asked for does not exist.
    #[error(transparent)]
    Choose(Box<ChooseError>),
    /// The plan asked for does not exist.
    #[error("{reason}")]
    UnknownPlan {
        /// Reason why the plan does not exist.
        reason: String,
    },
    /// The queue is full.
    #[error("the queue of {limit} requests is full")]
    QueueFull {
        /// Largest number of requests that the queue holds.
        limit: usize,
        /// Time after which to retry.
        retry_after: Duration,
    },
    /// Too much work is queued before the request for its latency budget.
    #[error("too many requests are before this one for its latency budget")]
    Late {
        /// Time after which to retry.
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
        /// Time that the request waited.
        waited: Duration,
    },
    /// The outputs hold a value that is not finite. The model overflows on an input, or its weights
    /// are broken.
    #[error("the plan `{plan}` gives a value that is not a finite number")]
    NotFinite {
        /// Id of the plan.
        plan: String,
    },
    /// A module failed.
    #[error("inference failed")]
    Runtime(#[from] RuntimeError),
    /// The inference thread panicked on the request; the next requests are answered.
    #[error("inference panicked")]
    Panicked,
    /// The server contradicts itself.
    #[error("broken invariant: {what}")]
    Broken {
        /// The contradiction.
        what: &'static str,
    },
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
    /// Returns the kind of the failure.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownFamily { .. } | Self::UnknownPlan { .. } => ErrorCode::NotFound,
            Self::Unavailable { .. }
            | Self::NotLoaded { .. }
            | Self::LoadFailed { .. }
            | Self::Draining => ErrorCode::Unavailable,
            Self::Input { .. } | Self::Prompt { .. } | Self::Context { .. } | Self::Budget(_) => {
                ErrorCode::InvalidArgument
            }
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::Choose(error) => match **error {
                ChooseError::NotFound { .. } => ErrorCode::NotFound,
                ChooseError::Infeasible(_) => ErrorCode::BudgetInfeasible,
            },
            Self::QueueFull { .. } | Self::Late { .. } => ErrorCode::Overloaded,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::DeadlineExceeded { .. } => ErrorCode::DeadlineExceeded,
            Self::NotFinite { .. }
            | Self::Runtime(_)
            | Self::Panicked
            | Self::Broken { .. }
            | Self::WorkerGone => ErrorCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Budget, BudgetParameters, Shape},
        serve::support_tests::loaded,
    };

    #[test]
    fn every_failure_has_one_kind() {
        use ErrorCode::{
            Cancelled, DeadlineExceeded, Internal, InvalidArgument, NotFound, Overloaded, TooLarge,
            Unavailable,
        };
        let text = String::new;
        let (waited, retry_after) = (Duration::ZERO, Duration::ZERO);
        let budget = BudgetParameters { min_quality: Some(2.0), ..BudgetParameters::default() };
        for (error, code) in [
            (ServeError::UnknownFamily { name: text(), known: text() }, NotFound),
            (ServeError::UnknownPlan { reason: text() }, NotFound),
            (ServeError::Unavailable { name: text(), state: "" }, Unavailable),
            (ServeError::NotLoaded { name: text(), reason: text() }, Unavailable),
            (ServeError::LoadFailed { name: text(), reason: text() }, Unavailable),
            (ServeError::Draining, Unavailable),
            (ServeError::Input { name: text(), reason: text() }, InvalidArgument),
            (budget.parse().expect_err("over 1").into(), InvalidArgument),
            (ServeError::TooLarge { what: text(), found: 2, limit: 1 }, TooLarge),
            (ServeError::QueueFull { limit: 1, retry_after }, Overloaded),
            (ServeError::Late { retry_after }, Overloaded),
            (ServeError::Cancelled, Cancelled),
            (ServeError::DeadlineExceeded { waited }, DeadlineExceeded),
            (ServeError::NotFinite { plan: text() }, Internal),
            (RuntimeError::NoOutput.into(), Internal),
            (ServeError::Panicked, Internal),
            (ServeError::Broken { what: "" }, Internal),
            (ServeError::WorkerGone, Internal),
        ] {
            assert_eq!(error.code(), code, "{error:?}");
        }
    }

    #[test]
    fn a_plan_that_does_not_exist_is_not_one_that_costs_too_much() {
        let table = loaded().table;
        let code = |budget: &Budget| {
            let error = table.choose(Shape::new(1, 1), budget).expect_err("no plan");
            ServeError::from(error).code()
        };
        let named = Budget { plan: Some("no such".into()), ..Budget::default() };
        assert_eq!(code(&named), ErrorCode::NotFound);
        let tight = Budget { memory_bytes: Some(1), ..Budget::default() };
        assert_eq!(code(&tight), ErrorCode::BudgetInfeasible);
    }
}
