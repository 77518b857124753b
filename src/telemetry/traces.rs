//! Spans for an OpenTelemetry collector, and the traces of others that they belong to.

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

/// The name under which spans come, unless `OTEL_SERVICE_NAME` gives another.
const SERVICE: &str = env!("CARGO_PKG_NAME");

/// Sends spans to a collector; what is left is sent when this is dropped.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Sends spans over gRPC (OTLP) to `endpoint`, such as `http://localhost:4317`. The standard
    /// environment says what is sampled (`OTEL_TRACES_SAMPLER`) and how spans are gathered
    /// (`OTEL_BSP_*`).
    ///
    /// Must be called within a Tokio runtime that lives until this is dropped.
    ///
    /// # Errors
    ///
    /// Fails when `endpoint` is no address. Whether a collector is there shows later, in the log.
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

/// Makes `span` a part of the trace that a request's headers name (W3C Trace Context), if they do.
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
