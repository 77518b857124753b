//! Settings of serving.

use std::time::Duration;

/// How families are served.
#[derive(Debug, Clone, Copy)]
pub struct ServiceConfig {
    /// Whether the modules of all plans are loaded before requests need them, while none waits.
    pub preload: bool,
    /// Threads that run batches at the same time, each with sessions of its own.
    pub num_workers: usize,
    /// The most requests that wait for the inference threads.
    pub queue_limit: usize,
    /// How long a request may wait before it is given up.
    pub max_wait: Duration,
    /// How much less than the latency budget a plan must be predicted to take, as a share of it.
    pub latency_margin: f64,
}
