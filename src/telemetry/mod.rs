//! What operators see: Prometheus metrics and logs.
//!
//! [`Metrics`] hears of requests and modules as an [`Observer`](crate::serve::Observer) and writes
//! the Prometheus text; [`start_logging`] sets up `tracing`. Neither decides anything.

mod error;
mod logging;
mod metrics;
#[cfg(test)]
mod tests;

pub use error::TelemetryError;
pub use logging::{LogFormat, start_logging};
pub use metrics::Metrics;
