//! What happens around every call: a time limit, a net for panics.

use std::{any::Any, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response},
    middleware::Next,
};
use tonic::{Code, Status};
use tracing::{Instrument, field::Empty};

use super::status::status_of;
use crate::api::{
    ApiState,
    error::ApiError,
    layers::{REQUEST_ID, continue_trace},
    request_id::next_request_id,
};

/// The metadata in which clients tell how long they wait.
const TIMEOUT: &str = "grpc-timeout";

/// Runs a call in a span of its own, and gives its answer the id under which the log knows it.
pub(super) async fn trace(
    State(state): State<ApiState>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let id = next_request_id();
    let path = request.uri().path().trim_start_matches('/');
    let (service, method) = path.rsplit_once('/').unwrap_or(("", path));
    let span = tracing::info_span!(
        "request",
        id,
        "rpc.system" = "grpc",
        "rpc.service" = service,
        "rpc.method" = method,
        model = Empty,
        plan = Empty,
        "otel.name" = path,
        "otel.kind" = "server",
        "otel.status_code" = Empty,
    );
    continue_trace(&state, &span, request.headers());
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = Status::from_header_map(response.headers());
    if status.is_some_and(|status| status.code() != Code::Ok) {
        span.record("otel.status_code", "ERROR");
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Has answers compressed where the request is: every client says that it could read them, and few
/// would have the server spend milliseconds on tensors that hardly get smaller.
pub(super) async fn compress_like_the_request(mut request: Request, next: Next) -> Response<Body> {
    let encoding = request.headers().get("grpc-encoding");
    if encoding.is_none_or(|encoding| encoding == "identity") {
        request.headers_mut().remove("grpc-accept-encoding");
    }
    next.run(request).await
}

/// Gives up a call that takes longer than `limit`, or than its client waits.
pub(super) async fn limit_time(
    State(limit): State<Duration>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let limit = wait_of(request.headers()).map_or(limit, |wait| wait.min(limit));
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => fail(&ApiError::TimedOut { limit }),
    }
}

/// Answers a call whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the payload over by value")]
pub(super) fn answer_panic(payload: Box<dyn Any + Send>) -> Response<Body> {
    fail(&ApiError::of_panic(&*payload))
}

/// What answers connections over the limit.
pub(super) fn refusal() -> Router {
    Router::new().fallback(|| async { fail(&ApiError::TooManyConnections) })
}

fn fail(error: &ApiError) -> Response<Body> {
    status_of(error).into_http()
}

/// Returns how long the client waits, from the unit-suffixed number that gRPC sends.
pub(super) fn wait_of(metadata: &HeaderMap) -> Option<Duration> {
    let text = metadata.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let wait = match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    (!wait.is_zero()).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_client_waits_is_read_in_its_unit() {
        for (text, wait) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("40m", Some(Duration::from_millis(40))),
            ("500u", Some(Duration::from_micros(500))),
            ("6n", Some(Duration::from_nanos(6))),
            ("0m", None),
            ("m", None),
            ("", None),
            ("12", None),
            ("99999999999999999999S", None),
            ("18446744073709551615H", None),
        ] {
            let mut metadata = HeaderMap::new();
            metadata.insert(TIMEOUT, text.parse().expect("ASCII"));
            assert_eq!(wait_of(&metadata), wait, "{text}");
        }
    }
}
