//! A request and its answer, independent of any wire format.

mod admit;
mod generate;
pub(super) mod inputs;
pub(super) mod prepare;
pub(super) mod pulse;
pub(super) mod service;
mod ticket;

pub use generate::{GenerateRequest, Generation};
pub use service::FamilyService;
pub use ticket::{Answer, Event, Ticket};

use std::time::{Duration, Instant};

use crate::{
    plan::{Budget, Quality},
    tensor::Tensor,
};

/// Priority of requests without one.
pub const DEFAULT_PRIORITY: u32 = 100;

/// A client's request to a family.
#[derive(Debug)]
pub struct InferRequest {
    /// Input tensors by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Name of the prompt before each text; `None` for the family's default.
    pub prompt_name: Option<String>,
    /// Limits on the cost and quality of the answer.
    pub budget: Budget,
    /// Priority from 1, the first; a waiting request with a smaller number runs before this one.
    pub priority: u32,
    /// Time at which the request arrived; the latency budget counts from here.
    pub arrival: Instant,
}

/// A family's answer.
#[derive(Debug)]
pub struct InferResponse {
    /// Outputs by name, the family's own first.
    pub outputs: Vec<(String, Tensor)>,
    /// Report on the answer.
    pub report: Report,
}

/// A plan with its costs at one shape of request.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanSummary {
    /// Id of the plan.
    pub plan: String,
    /// Predicted latency.
    pub predicted_latency: Duration,
    /// Size of the weights and the largest activations, in bytes.
    pub memory_bytes: u64,
    /// Quality of the plan, and whether it was measured or predicted.
    pub quality: Quality,
}

/// Report on an answered request: its plan, shape and times.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Plan that ran, with its predicted costs.
    pub plan: PlanSummary,
    /// Number of sequences in the request.
    pub batch: usize,
    /// Number of tokens of the longest sequence.
    pub tokens: usize,
    /// Number of tokens of all sequences without padding; of images if there are no tokens.
    pub total_tokens: usize,
    /// Time from arrival to answer.
    pub latency: Duration,
    /// Time to turn texts into tokens, or image files into pixels.
    pub preprocess: Duration,
    /// Time in the queue for the inference thread.
    pub queue: Duration,
    /// Time to run modules.
    pub compute: Duration,
    /// Experts that tokens took, by module; empty if no module routes.
    pub routed: Vec<RoutedModule>,
}

/// Experts that a request's tokens took in one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedModule {
    /// Name of the module.
    pub module: String,
    /// Largest number of experts that a token takes.
    pub top_k: usize,
    /// Number of tokens that were routed.
    pub num_tokens: u64,
    /// Number of tokens that took each expert.
    pub taken: Vec<u64>,
}
