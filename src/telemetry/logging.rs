//! Setting up `tracing`.

use std::io;

use clap::ValueEnum;
use serde::Serialize;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::layer, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::TelemetryError;

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, for the whole process.
///
/// # Errors
///
/// Fails on a filter that does not parse, and when logging was set up before.
pub fn start_logging(filter: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let directives = EnvFilter::try_new(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let lines = match format {
        LogFormat::Text => layer().with_writer(io::stderr).boxed(),
        LogFormat::Json => layer().json().with_writer(io::stderr).boxed(),
    };
    Registry::default()
        .with(lines.with_filter(directives))
        .try_init()
        .map_err(|source| TelemetryError::AlreadySet { source })
}
