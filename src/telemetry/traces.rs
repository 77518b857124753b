//! Spans for an OpenTelemetry collector, and the clients' traces that they continue.

use opentelemetry::{
    Array, StringValue, Value,
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

/// Attributes of a span for a request for generated text, by OpenTelemetry's semantic conventions
/// for generative models. No text is told. What the request does not say is `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct GenerationAttributes<'a> {
    /// Name of the operation: `chat` or `text_completion`.
    pub operation: &'static str,
    /// Name of the model.
    pub model: &'a str,
    /// Number of answers.
    pub num_choices: usize,
    /// Most tokens to generate.
    pub max_tokens: Option<usize>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// Probability of the tokens together that may be drawn.
    pub top_p: Option<f32>,
    /// Number of the most likely tokens that may be drawn.
    pub top_k: Option<i64>,
    /// Penalty for each time that the answer has a token.
    pub frequency_penalty: Option<f32>,
    /// Penalty for tokens that the answer has.
    pub presence_penalty: Option<f32>,
    /// Number that the draws follow from.
    pub seed: Option<i64>,
}

impl GenerationAttributes<'_> {
    /// Sets the attributes of `span`.
    pub fn set(&self, span: &Span) {
        // The nearest number to the decimals that the request has.
        let number = |value: f32| Value::F64(value.to_string().parse().unwrap_or(value.into()));
        let count = |value: usize| Value::I64(i64::try_from(value).unwrap_or(i64::MAX));
        let choices = Some(self.num_choices).filter(|found| *found != 1);
        let top_k = self.top_k.map(|found| i32::try_from(found).unwrap_or(i32::MAX));
        let attributes = [
            ("gen_ai.operation.name", Some(Value::from(self.operation))),
            ("gen_ai.provider.name", Some(Value::from(SERVICE))),
            ("gen_ai.request.model", Some(Value::from(self.model.to_owned()))),
            ("gen_ai.response.model", Some(Value::from(self.model.to_owned()))),
            ("gen_ai.request.choice.count", choices.map(count)),
            ("gen_ai.request.max_tokens", self.max_tokens.map(count)),
            ("gen_ai.request.temperature", self.temperature.map(number)),
            ("gen_ai.request.top_p", self.top_p.map(number)),
            ("gen_ai.request.top_k", top_k.map(|found| Value::F64(found.into()))),
            ("gen_ai.request.frequency_penalty", self.frequency_penalty.map(number)),
            ("gen_ai.request.presence_penalty", self.presence_penalty.map(number)),
            ("gen_ai.request.seed", self.seed.map(Value::I64)),
        ];
        for (name, value) in attributes {
            if let Some(value) = value {
                span.set_attribute(name, value);
            }
        }
    }
}

/// Attributes of a span for generated text.
#[derive(Debug, Clone, Default)]
pub struct GeneratedAttributes {
    /// Number of tokens of the prompt.
    pub num_input: usize,
    /// Number of those whose keys and values were in a cache.
    pub num_cached: usize,
    /// Number of generated tokens of all answers.
    pub num_output: usize,
    /// Reasons why the answers ended.
    pub reasons: Vec<&'static str>,
}

impl GeneratedAttributes {
    /// Sets the attributes of `span`.
    pub fn set(&self, span: &Span) {
        let count = |value: usize| Value::I64(i64::try_from(value).unwrap_or(i64::MAX));
        span.set_attribute("gen_ai.usage.input_tokens", count(self.num_input));
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", count(self.num_cached));
        span.set_attribute("gen_ai.usage.output_tokens", count(self.num_output));
        let reasons = self.reasons.iter().copied().map(StringValue::from);
        let reasons = Value::Array(Array::String(reasons.collect()));
        span.set_attribute("gen_ai.response.finish_reasons", reasons);
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
