//! Interface through which other modules observe serving without being known here.

use std::time::Duration;

use super::{ErrorCode, Finish, Report, ServeError, Timings};
use crate::runtime::{Residency, Routing, RuntimeError};

/// Observer of finished requests and of runs. Its methods are called by request tasks and inference
/// threads, and must not block.
pub trait Observer: Send + Sync {
    /// Is called for every arrived request of a family.
    fn accepted(&self, family: &str);

    /// Is called once for every accepted request, when it has ended.
    fn finished(&self, family: &str, outcome: &Outcome<'_>);

    /// Is called after a plan ran on `rows` texts or images of one or more requests. Predictions
    /// are multiplied by `correction` from now on.
    fn batch_ran(&self, family: &str, rows: usize, correction: f64);

    /// Is called after a module ran for `time`.
    fn module_ran(&self, family: &str, module: &str, time: Duration);

    /// Is called when the learned latency of a module has changed. It is now `ratio` times the
    /// profiled one, at the shape that ran last and the machine's current speed.
    fn module_corrected(&self, _family: &str, _module: &str, _ratio: f64) {}

    /// Is called after a module ran that routed tokens to experts.
    fn tokens_routed(&self, _family: &str, _module: &str, _routing: &Routing) {}

    /// Is called when a router gave a score that is not a number.
    fn router_failed(&self, _family: &str, _module: &str) {}

    /// Is called when the loaded modules of a family may have changed.
    fn residency_changed(&self, family: &str, residency: &Residency);

    /// Is called when a request enters (+1) or leaves (−1) the queue.
    fn queue_changed(&self, family: &str, change: i64);

    /// Is called when a generated sequence has ended.
    fn sequence_ended(&self, _family: &str, _sequence: &SequenceReport) {}

    /// Is called after each step of a family's sequences, and when the family is left.
    fn step_ran(&self, _family: &str, _change: &StepChange) {}

    /// Is called when a connection is opened (+1) or closed (−1); `protocol` is `http` or `grpc`.
    fn connections_changed(&self, protocol: &str, change: i64);

    /// Is called when a connection is refused because there are too many.
    fn connection_refused(&self, protocol: &str);
}

/// Outcome of a request.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// The request was answered.
    Answered {
        /// Report on the answer.
        report: &'a Report,
        /// Latency budget of the request.
        latency_budget: Option<Duration>,
    },
    /// The request was refused or failed.
    Failed {
        /// Kind of the failure.
        code: ErrorCode,
    },
}

/// Report on a generated sequence that has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceReport {
    /// Reason of the end.
    pub ending: Ending,
    /// Counts and times.
    pub timings: Timings,
    /// Time from the arrival to the first token, or `None` if there is no token.
    pub first_token: Option<Duration>,
    /// Time from the arrival to the end.
    pub total: Duration,
}

/// Reason of the end of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it, or it cannot grow.
    Finished(Finish),
    /// Its receiver took no more tokens: a stop string was found, or the client left.
    Closed,
    /// It failed.
    Failed,
}

/// Change of a family's sequences since the step before. Two versions of a family that live at once
/// add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepChange {
    /// Change of the number of sequences with a cache.
    pub num_running: i64,
    /// Change of the number of sequences that wait for one.
    pub num_waiting: i64,
    /// Number of sequences that gave their cache up.
    pub num_preempted: u64,
    /// Change of the bytes of the caches, those that are kept for later prompts included.
    pub cache_bytes: i64,
}

/// Returns the client's error for `error`. The log, not the client, gets the changed file or the
/// amount of missing memory.
pub(super) fn reported(observer: &dyn Observer, name: &str, error: RuntimeError) -> ServeError {
    if let RuntimeError::Score { module, .. } = &error {
        observer.router_failed(name, module);
    }
    let state = match error {
        RuntimeError::Changed { .. } => "its files were changed; it must be loaded again",
        RuntimeError::MemoryLimit { .. } => "it does not fit into the memory limit",
        _ => return error.into(),
    };
    tracing::error!(family = name, %error);
    ServeError::Unavailable { name: name.to_owned(), state }
}
