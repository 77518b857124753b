//! Spans for an OpenTelemetry collector, and the clients' traces that they continue.

use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, Tracer},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TelemetryError;

/// Service name of the spans, unless `OTEL_SERVICE_NAME` gives another.
const SERVICE: &str = env!("CARGO_PKG_NAME");

/// Exporter of spans to a collector; sends the remaining spans when it is dropped.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts to send spans over gRPC (OTLP) to `endpoint`, such as `http://localhost:4317`.
    /// Standard environment variables set the sampling (`OTEL_TRACES_SAMPLER`) and the batching of
    /// spans (`OTEL_BSP_*`).
    ///
    /// Must be called within a Tokio runtime that lives until the returned value is dropped.
    ///
    /// # Errors
    ///
    /// Fails if `endpoint` is not an address. A missing collector shows only later, in the log.
    pub fn start(endpoint: &str) -> Result<Self, TelemetryError> {
        let exporter =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(
                |source| TelemetryError::Endpoint {
                    endpoint: endpoint.to_owned(),
                    source: Box::new(source),
                },
            )?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self { provider })
    }

    pub(super) fn tracer(&self) -> Tracer {
        self.provider.tracer(SERVICE)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Makes `span` part of the trace that `traceparent` and `tracestate` name (W3C Trace Context).
/// Does nothing if `traceparent` is missing.
pub fn continue_trace(span: &Span, traceparent: Option<&str>, tracestate: Option<&str>) {
    if traceparent.is_none() {
        return;
    }
    let parent = TraceContextPropagator::new().extract(&Headers { traceparent, tracestate });
    if span.set_parent(parent).is_err() {
        tracing::debug!("spans are not sent, so no trace is continued");
    }
}

struct Headers<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}
