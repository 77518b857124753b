//! Errors of setting up telemetry.

use tracing_subscriber::{filter::ParseError, util::TryInitError};

/// Error for metrics, logging or traces that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "`{filter}` is not a log filter; write a level or directives such as `info,tessera=debug`"
    )]
    Filter {
        /// The filter as given.
        filter: String,
        /// The reason.
        #[source]
        source: ParseError,
    },
    /// Logging was set up before.
    #[error("logging is already set up")]
    AlreadySet {
        /// The reason.
        #[source]
        source: TryInitError,
    },
    /// Spans cannot be sent to `endpoint`.
    #[error("spans cannot be sent to `{endpoint}`; an address is such as http://localhost:4317")]
    Endpoint {
        /// Address of the collector.
        endpoint: String,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A metric is refused by its registry.
    #[error("the metrics cannot be set up")]
    Metrics(#[from] prometheus::Error),
}
