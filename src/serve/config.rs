//! Settings of serving.

use std::time::Duration;

/// Settings of the server's queue and inference threads.
#[derive(Debug, Clone, Copy)]
pub struct ServiceConfig {
    /// Whether the modules of all plans are loaded before requests need them, while no request
    /// waits.
    pub preload: bool,
    /// Number of threads that run batches at the same time, each with its own sessions.
    pub num_workers: usize,
    /// Largest number of requests that wait for the inference threads.
    pub queue_limit: usize,
    /// Longest time that a request may wait before it fails.
    pub max_wait: Duration,
    /// Margin added to a plan's predicted latency before it is compared with the latency budget, as
    /// a fraction of it.
    pub latency_margin: f64,
    /// Whether a prompt may begin with what other clients' prompts left in caches. A client can
    /// then find out by the time to a first token what others asked.
    pub shares_prefixes: bool,
}
