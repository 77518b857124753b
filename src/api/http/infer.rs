//! `POST /v2/models/{model}/infer`, and the parts of inference that all protocols share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use tracing::{Instrument, Span, debug_span};

use super::models::Model;
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, in_json_bytes, off_thread},
            bounds::Bounds,
            classes::best_classes,
            decode::{Decoded, RequestedOutputs, decode},
            encode::{AnswerHead, Encoded, encode},
            specs::Specs,
        },
        error::ApiError,
        state::Shared,
    },
    serve::{ErrorCode, InferRequest, InferResponse, Observer, Outcome, Report},
    tensor::Tensor,
};

/// Most bytes of JSON for an element of an output, roughly.
const MAX_ELEMENT_BYTES: usize = 16;

/// Header with the length of the JSON in a body, before its raw tensors.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Answers an inference request. The latency budget counts from the arrival of the whole body.
pub(crate) async fn infer(
    State(shared): State<Arc<Shared>>,
    model: Model,
    Extension(permit): Extension<Permit>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let accepted = Accepted::new(shared.api.observer.clone(), &model);
    let specs = model.specs();
    let decoded = match json_length(&headers, body.len()) {
        Ok(json_len) => {
            let json = json_len.unwrap_or(body.len()).min(body.len());
            off_thread(in_json_bytes(json, body.len() - json), move || {
                decode(body, json_len, &specs, arrival)
            })
            .instrument(debug_span!("decode"))
            .await
        }
        Err(error) => Err(error),
    };
    let mut decoded = accepted.hand_over(decoded)?;
    let InferRequest { budget, priority, .. } = &mut decoded.request;
    permit.cap(budget, priority);
    let answer = answer(&model, decoded).await?;
    let report = answer.response.report.clone();
    let encode = |Answer { heading, response, wanted }| encode(&heading, &response, &wanted);
    let encoded = off_thread(answer.num_bytes(), move || encode(answer))
        .instrument(debug_span!("encode"))
        .await?;
    Ok(respond(encoded, &server_timing(&report, arrival.elapsed())))
}

/// Returns the work of writing an output, in bytes of JSON.
pub(crate) fn output_bytes(output: &Tensor, binary: bool) -> usize {
    let num_elements = output.data().len();
    match binary {
        true => in_json_bytes(0, num_elements.saturating_mul(size_of::<f32>())),
        false => num_elements.saturating_mul(MAX_ELEMENT_BYTES),
    }
}

/// A model's answer, before a protocol writes it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Fields of the answer beside its outputs.
    pub(crate) heading: AnswerHead,
    /// Outputs that the request asked for, and the report.
    pub(crate) response: InferResponse,
    /// Form of the outputs.
    pub(crate) wanted: RequestedOutputs,
}

impl Answer {
    /// Returns the work of writing the outputs, in bytes of JSON.
    pub(crate) fn num_bytes(&self) -> usize {
        let outputs = self.response.outputs.iter();
        outputs.map(|(name, tensor)| output_bytes(tensor, self.wanted.is_binary(name))).sum()
    }
}

/// Answers a decoded request.
pub(crate) async fn answer(model: &Model, decoded: Decoded) -> Result<Answer, ApiError> {
    let Decoded { request, id, explain, classification, wanted } = decoded;
    let mut response = model.service.infer(request).await?;
    response.outputs.retain(|(name, _)| wanted.has(name));
    if let Some(count) = classification {
        response = classify(model, response, count).await?;
    }
    Span::current().record("plan", &response.report.plan.plan);
    Ok(Answer { heading: AnswerHead::new(model, id, explain), response, wanted })
}

/// Replaces the scores of each row by the names of its `count` best classes.
async fn classify(
    model: &Model,
    mut response: InferResponse,
    count: usize,
) -> Result<InferResponse, ApiError> {
    let service = model.service.clone();
    let num_bytes = response.outputs.iter().map(|(_, scores)| output_bytes(scores, false)).sum();
    off_thread(num_bytes, move || {
        let output = &service.manifest().output;
        for (_, scores) in response.outputs.iter_mut().filter(|(name, _)| *name == output.name) {
            *scores = best_classes(scores, count, &output.labels);
        }
        Ok(response)
    })
    .await
}

/// Guard of a request that has arrived. If the request ends before its family takes it, the guard
/// reports that to the observer, even if the client has gone.
pub(crate) struct Accepted {
    observer: Arc<dyn Observer>,
    family: String,
    is_told: bool,
}

impl Accepted {
    /// Creates the guard, and reports a request for `model` to the observer.
    pub(crate) fn new(observer: Arc<dyn Observer>, model: &Model) -> Self {
        let family = model.service.name().to_owned();
        observer.accepted(&family);
        Self { observer, family, is_told: false }
    }

    /// Leaves a decoded request to its family, which must be asked next. Reports a refused one to
    /// the observer.
    pub(crate) fn hand_over<T>(mut self, decoded: Result<T, ApiError>) -> Result<T, ApiError> {
        self.is_told = true;
        decoded.inspect_err(|error| self.tell(error.code()))
    }

    fn tell(&self, code: ErrorCode) {
        self.observer.finished(&self.family, &Outcome::Failed { code });
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(ErrorCode::Cancelled);
        }
    }
}

impl Model {
    /// Returns the tensors and bounds of the model.
    pub(crate) fn specs(&self) -> Specs {
        Specs {
            inputs: self.service.input_specs(),
            outputs: self.service.output_specs(),
            num_labels: self.service.manifest().output.labels.len(),
            bounds: Bounds::of(self.service.manifest()),
        }
    }
}

/// Returns the length of the JSON in a body of `limit` bytes, or None if `headers` do not give it.
fn json_length(headers: &HeaderMap, limit: usize) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(&JSON_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| {
        let found = String::from_utf8_lossy(value.as_bytes()).chars().take(32).collect();
        ApiError::JsonLength { found, limit }
    })
}

fn respond(encoded: Encoded, timing: &str) -> Response {
    let Encoded { body, json_len } = encoded;
    let content_type = if json_len.is_some() { OCTETS } else { JSON };
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    if let Some(json_len) = json_len {
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(json_len));
    }
    if let Ok(timing) = HeaderValue::from_str(timing) {
        response.headers_mut().insert("server-timing", timing);
    }
    response
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Returns the times of the stages in milliseconds, in the form of W3C Server Timing.
pub(crate) fn server_timing(report: &Report, total: Duration) -> String {
    let stages = [
        ("preprocess", report.preprocess),
        ("queue", report.queue),
        ("compute", report.compute),
        ("total", total),
    ];
    let entry =
        |(name, time): (&str, Duration)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3);
    stages.map(entry).join(", ")
}
