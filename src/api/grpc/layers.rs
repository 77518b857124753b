//! Layers around every call: the gate, a time limit, a net for panics.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response},
    middleware::Next,
};
use tonic::{Code, Status};
use tower::ServiceExt;
use tracing::{Instrument, field::Empty};

use super::status::{name_too_large, status_of};
use crate::api::{
    access::clients::Gate,
    error::ApiError,
    layers::{REQUEST_ID, authorization, continue_trace, next_request_id},
    state::ApiState,
};

/// Metadata with the time that a client waits.
const TIMEOUT: &str = "grpc-timeout";

/// Most digits of the number in [`TIMEOUT`].
const MAX_DIGITS: usize = 8;

/// Paths of calls that need no token: the server's state, and the description of the protocol.
const OPEN_CALLS: [&str; 3] = [
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/grpc.reflection.",
];

/// Path of the standard health service.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Path of the call whose messages count as requests of their own.
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Runs a call in a span of its own, and gives its answer the call's id in the log.
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
    name_too_large(response.headers_mut());
    let status = Status::from_header_map(response.headers());
    if status.is_some_and(|status| status.code() != Code::Ok) {
        span.record("otel.status_code", "ERROR");
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Parts that the gate's layer works with.
#[derive(Debug, Clone)]
pub(super) struct Front {
    /// Gate that calls pass.
    pub(super) gate: Arc<Gate>,
    /// Health service for clients that may not send requests; it does not name the models.
    pub(super) stranger_health: Router,
}

/// Checks a call's token at the gate by its metadata, before its message is read.
///
/// A stream does not count as a request; its messages do.
pub(super) async fn admit(
    State(front): State<Front>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let authorization = authorization(request.headers());
    let permit = match request.uri().path() {
        path if OPEN_CALLS.iter().any(|open| path.starts_with(open)) => {
            return next.run(request).await;
        }
        path if path.starts_with(HEALTH) && front.gate.identify(authorization).is_err() => {
            let Ok(response) = front.stranger_health.oneshot(request).await;
            return response;
        }
        path if path.starts_with(HEALTH) => return next.run(request).await,
        STREAM => front.gate.identify(authorization),
        _ => front.gate.pass(authorization),
    };
    match permit {
        Ok(permit) => {
            request.extensions_mut().insert(permit);
            next.run(request).await
        }
        Err(error) => fail(&error),
    }
}

/// Has an answer compressed only if the request is. Every client declares that it reads compressed
/// answers. Few want the server to spend milliseconds on tensors that hardly get smaller.
pub(super) async fn compress_like_the_request(mut request: Request, next: Next) -> Response<Body> {
    let encoding = request.headers().get("grpc-encoding");
    if encoding.is_none_or(|encoding| encoding == "identity") {
        request.headers_mut().remove("grpc-accept-encoding");
    }
    next.run(request).await
}

/// Ends a call with an error after `limit`, or after the time that its client waits.
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

/// Returns the answer to a call whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the payload over by value")]
pub(super) fn answer_panic(payload: Box<dyn Any + Send>) -> Response<Body> {
    fail(&ApiError::of_panic(&*payload))
}

/// Returns the router that answers connections over the limit.
pub(super) fn refusal() -> Router {
    Router::new().fallback(|| async { fail(&ApiError::TooManyConnections) })
}

fn fail(error: &ApiError) -> Response<Body> {
    status_of(error).into_http()
}

/// Returns the time that the client waits, from gRPC's number with a unit. Returns None if the
/// number is missing, zero or not valid. A number with more digits than the protocol has is not
/// valid.
pub(super) fn wait_of(metadata: &HeaderMap) -> Option<Duration> {
    let text = metadata.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = Some(number).filter(|number| number.len() <= MAX_DIGITS)?.parse().ok()?;
    let wait = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
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
    use axum::middleware::from_fn_with_state;
    use bytes::Bytes;
    use http_body_util::BodyExt;

    use super::*;
    use crate::api::access::clients::Clients;

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
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000n", None),
            ("18446744073709551615S", None),
            ("99999999999999999999S", None),
            ("18446744073709551615H", None),
        ] {
            let mut metadata = HeaderMap::new();
            metadata.insert(TIMEOUT, text.parse().expect("ASCII"));
            assert_eq!(wait_of(&metadata), wait, "{text}");
        }
    }

    /// Sends a call through the gate; returns its status, and the name of the service that
    /// answered.
    async fn called(gate: &Arc<Gate>, path: &str, token: &str) -> (Code, String) {
        let says = |text: &'static str| Router::new().fallback(move || async move { text });
        let front = Front { gate: gate.clone(), stranger_health: says("stranger") };
        let router = says("all").layer(from_fn_with_state(front, admit));
        // Reading this message fails; the gate must not read it.
        let body = Body::from_stream(tokio_stream::once(Err::<Bytes, _>("was read")));
        let request = Request::post(path).header("authorization", token).body(body);
        let Ok(response) = router.oneshot(request.expect("a request")).await;
        let status = Status::from_header_map(response.headers());
        let bytes = response.into_body().collect().await.expect("an answer").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("a text");
        (status.map_or(Code::Ok, |status| status.code()), text)
    }

    #[tokio::test]
    async fn a_token_is_asked_for_before_a_message_is_read() {
        const FILE: &str = "[clients.a]\ntoken = \"0123456789abcdef\"\nrequests_per_second = 1";
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("clients.toml");
        std::fs::write(&file, FILE).expect("written");
        let clients = Clients::read(&file).expect("valid");
        let gate = Arc::new(Gate::new(Some(clients)));
        let known = "Bearer 0123456789abcdef";
        let refused = (Code::Unauthenticated, String::new());
        let service = |name: &str| format!("/inference.GRPCInferenceService/{name}");
        for name in ["ModelInfer", "ModelReady", "ServerMetadata", "ModelStreamInfer", "Nothing"] {
            for token in ["", "Bearer wrong"] {
                assert_eq!(called(&gate, &service(name), token).await, refused, "{name}");
            }
        }
        let all = (Code::Ok, "all".to_owned());
        for path in [&service("ServerLive"), &service("ServerReady"), "/grpc.reflection.v1.X/Y"] {
            assert_eq!(called(&gate, path, "").await, all, "{path}");
        }
        let health = "/grpc.health.v1.Health/Check";
        assert_eq!(called(&gate, health, "").await, (Code::Ok, "stranger".to_owned()));
        assert_eq!(called(&gate, health, known).await, all);
        // Neither health nor a stream counts as a request, but the stream's messages do.
        assert_eq!(called(&gate, &service("ModelStreamInfer"), known).await, all);
        assert_eq!(called(&gate, &service("ModelInfer"), known).await, all);
        let (code, _) = called(&gate, &service("ModelInfer"), known).await;
        assert_eq!(code, Code::ResourceExhausted);
    }
}
