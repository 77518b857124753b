//! How others hear of what is served, without being known here.

use std::time::Duration;

use super::{ErrorCode, Report};
use crate::runtime::{Residency, Routing};

/// Hears of finished requests and of what runs. Calls come from request tasks and inference
/// threads, and must not block.
pub trait Observer: Send + Sync {
    /// Is called for every request of a family that has arrived.
    fn accepted(&self, family: &str);

    /// Is called once for every request that was accepted, when it has ended.
    fn finished(&self, family: &str, outcome: &Outcome<'_>);

    /// Is called after a plan ran on `rows` texts or images of one or more requests; what is
    /// predicted is multiplied by `correction` from now on.
    fn batch_ran(&self, family: &str, rows: usize, correction: f64);

    /// Is called after a module ran.
    fn module_ran(&self, family: &str, module: &str, time: Duration);

    /// Is called when it was learned that a module takes `ratio` times what was profiled, at the
    /// shape that ran last and as fast as the machine is now.
    fn module_corrected(&self, _family: &str, _module: &str, _ratio: f64) {}

    /// Is called after a module ran inside which tokens took ways of their own.
    fn tokens_routed(&self, _family: &str, _module: &str, _routing: &Routing) {}

    /// Is called when a router gave a score that is no number.
    fn router_failed(&self, _family: &str, _module: &str) {}

    /// Is called when modules were loaded.
    fn residency_changed(&self, family: &str, residency: &Residency);

    /// Is called when a request enters (+1) or leaves (−1) the queue.
    fn queue_changed(&self, family: &str, change: i64);

    /// Is called when a connection is opened (+1) or closed (−1); `protocol` is `http` or `grpc`.
    fn connections_changed(&self, protocol: &str, change: i64);

    /// Is called when a connection is refused because there are too many.
    fn connection_refused(&self, protocol: &str);
}

/// How a request ended.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// It was answered.
    Answered {
        /// What was done.
        report: &'a Report,
        /// The latency budget that it came with.
        latency_budget: Option<Duration>,
    },
    /// It was refused or failed.
    Failed {
        /// How.
        code: ErrorCode,
    },
}
