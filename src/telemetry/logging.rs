//! Setup of `tracing`.

use std::io;

use clap::ValueEnum;
use serde::Serialize;
use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::Targets, fmt::layer, layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::{TelemetryError, Traces};

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for a person.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Least level of the spans and events that a collector gets; includes requests and their stages.
const SENT: Level = Level::DEBUG;

/// Starts logging to standard error for the whole process. Spans are sent with `traces`, if given.
///
/// # Errors
///
/// Fails on a `filter` that does not parse, or if logging was set up before.
pub fn start_logging(
    filter: &str,
    format: LogFormat,
    traces: Option<&Traces>,
) -> Result<(), TelemetryError> {
    let directives = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let lines = match format {
        LogFormat::Text => layer().with_writer(io::stderr).boxed(),
        LogFormat::Json => layer().json().with_writer(io::stderr).boxed(),
    };
    let spans = traces.map(|traces| {
        tracing_opentelemetry::layer()
            .with_tracer(traces.tracer())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(env!("CARGO_PKG_NAME"), SENT))
    });
    Registry::default()
        .with(lines.with_filter(directives))
        .with(spans)
        .try_init()
        .map_err(|source| TelemetryError::AlreadySet { source })
}
