//! A request and its answer, free of any wire format.

use std::time::{Duration, Instant};

use super::RoutedModule;
use crate::{
    plan::{Budget, Quality},
    tensor::Tensor,
};

/// The priority of requests that name none.
pub const DEFAULT_PRIORITY: u32 = 100;

/// What a client asks of a family.
#[derive(Debug)]
pub struct InferRequest {
    /// The input tensors by name.
    pub inputs: Vec<(String, Tensor)>,
    /// What the answer may cost.
    pub budget: Budget,
    /// What waits and has a smaller number runs before it; 1 is the first.
    pub priority: u32,
    /// When the request arrived; the latency budget counts from here.
    pub arrival: Instant,
}

/// A family's answer.
#[derive(Debug)]
pub struct InferResponse {
    /// The outputs by name, the family's own first.
    pub outputs: Vec<(String, Tensor)>,
    /// What was done.
    pub report: Report,
}

/// A plan with what it costs at one shape of request.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanSummary {
    /// The plan's id.
    pub plan: String,
    /// The predicted latency.
    pub predicted_latency: Duration,
    /// The bytes of its weights and its largest activations.
    pub memory_bytes: u64,
    /// Its quality, and whether that was measured or predicted.
    pub quality: Quality,
}

/// What was done for a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The plan that ran and what it was predicted to cost.
    pub plan: PlanSummary,
    /// The sequences in the request.
    pub batch: usize,
    /// The tokens of its longest sequence.
    pub tokens: usize,
    /// The tokens of all sequences, padding left out; images where there are no tokens.
    pub total_tokens: usize,
    /// From arrival to answer.
    pub latency: Duration,
    /// Turning texts into tokens, or image files into pixels.
    pub preprocess: Duration,
    /// Waiting for the inference thread.
    pub queue: Duration,
    /// Running modules.
    pub compute: Duration,
    /// The ways that tokens took, by module; empty where none routes.
    pub routed: Vec<RoutedModule>,
}
