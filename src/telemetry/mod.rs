//! Telemetry for operators: Prometheus metrics, logs and traces.
//!
//! [`Metrics`] observes requests and modules as an [`Observer`](crate::serve::Observer) and writes
//! the Prometheus text. [`start_logging`] sets up `tracing`; [`Traces`] sends its spans to a
//! collector. None of them decides anything.

mod error;
#[cfg(test)]
mod fuzz_tests;
mod generation;
mod logging;
mod makers;
mod metrics;
mod panics;
mod routing;
#[cfg(test)]
mod tests;
mod traces;

pub use error::TelemetryError;
pub use logging::{LogFormat, start_logging};
pub use metrics::Metrics;
pub use panics::log_panics;
pub use traces::{GeneratedAttributes, GenerationAttributes, Traces, continue_trace};
