//! `POST /v2/models/{model}/infer`.

use std::time::{Duration, Instant};

use axum::{
    Extension,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use tracing::{Instrument, debug_span};

use crate::{
    api::{
        access::clients::Permit,
        answers::answer,
        codec::{
            body::{Body, in_json_bytes, off_thread},
            bounds::Bounds,
            decode::read_parts,
            encode::{Encoded, encode},
        },
        error::ApiError,
        inference::{Answer, Call, Model},
    },
    serve::Report,
};

/// Header with the length of the JSON in a body, before its raw tensors.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Answers an inference request. The latency budget counts from the arrival of the whole body.
pub(crate) async fn infer(
    model: Model,
    Extension(permit): Extension<Permit>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let json_len = json_length(&headers, body.len());
    let json = json_len.as_ref().ok().copied().flatten().unwrap_or(body.len()).min(body.len());
    let call = Call { permit, wait: None, num_bytes: in_json_bytes(json, body.len() - json) };
    let read = move |bounds: &Bounds| read_parts(body, json_len?, bounds);
    let answer = answer(model, call, arrival, read).await?;
    let report = answer.response.report.clone();
    let encode = |Answer { heading, response, wanted }| encode(&heading, &response, &wanted);
    let encoded = off_thread(answer.num_bytes(), move || encode(answer))
        .instrument(debug_span!("encode"))
        .await?;
    Ok(respond(encoded, &server_timing(&report, arrival.elapsed())))
}

/// Returns the length of the JSON in a body of `limit` bytes, or None if `headers` do not give it.
///
/// # Errors
///
/// Fails on a header that is not a number.
pub(crate) fn json_length(headers: &HeaderMap, limit: usize) -> Result<Option<usize>, ApiError> {
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
