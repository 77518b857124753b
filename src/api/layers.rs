//! Layers around every request: a span, a time limit, a net for panics, bodies for errors.

use std::{
    any::Any,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use tracing::{Instrument, Span, field::Empty};

use super::{
    error::ApiError,
    state::{ApiState, Shared},
};

/// Header with the id of a request in the log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Paths that need no token.
const OPEN_PATHS: [&str; 5] =
    ["/", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"];

/// Returns an id for the log that no other request of this process has.
pub(super) fn next_request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a request in a span of its own, and gives its failure a body with the request's id.
pub(super) async fn trace(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let request_id = next_request_id();
    let method = request.method().as_str();
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        id = request_id,
        "http.request.method" = method,
        "http.route" = path,
        "http.response.status_code" = Empty,
        model = Empty,
        plan = Empty,
        "otel.name" = format!("{method} {path}"),
        "otel.kind" = "server",
        "otel.status_code" = Empty,
    );
    continue_trace(&shared.api, &span, request.headers());
    answer(request_id, request, next).instrument(span).await
}

/// Makes a request's span part of the trace that its headers name.
pub(super) fn continue_trace(state: &ApiState, span: &Span, headers: &HeaderMap) {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    (state.continue_trace)(span, header("traceparent"), header("tracestate"));
}

async fn answer(request_id: String, request: Request, next: Next) -> Response {
    let is_openai = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        tracing::debug!(error = error.shortened(), "refused");
        *response.body_mut() = match is_openai {
            true => error.render_openai(&request_id),
            false => error.render(&request_id),
        };
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    let span = Span::current();
    span.record("http.response.status_code", i64::from(response.status().as_u16()));
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    tracing::debug!("answered");
    if let Ok(request_id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    response
}

/// Returns the router that answers connections over the limit.
pub(super) fn refusal() -> Router {
    let refuse = |request: Request, next| answer(next_request_id(), request, next);
    Router::new().fallback(|| async { ApiError::TooManyConnections }).layer(from_fn(refuse))
}

/// Checks a request's token at the gate; the paths in [`OPEN_PATHS`] need none.
pub(super) async fn admit(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !OPEN_PATHS.contains(&request.uri().path()) {
        let permit = shared.api.gate.pass(authorization(request.headers()))?;
        request.extensions_mut().insert(permit);
    }
    Ok(next.run(request).await)
}

/// Returns the header with a client's token, or None if it is missing or not text.
pub(super) fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()
}

/// Limit on the time of one request. The handler lifts it once an answer is under way that may
/// take long, such as a text whose first token is there.
#[derive(Debug, Clone, Default)]
pub(super) struct TimeLimit {
    is_lifted: Arc<AtomicBool>,
}

impl TimeLimit {
    /// Lets the request take as long as it needs.
    pub(super) fn lift(&self) {
        self.is_lifted.store(true, Ordering::Relaxed);
    }
}

/// Ends a request with an error after `limit`, which includes the arrival of its body, unless its
/// [`TimeLimit`] was lifted.
pub(super) async fn limit_time(
    State(limit): State<Duration>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let own = TimeLimit::default();
    request.extensions_mut().insert(own.clone());
    let mut answer = pin!(next.run(request));
    match tokio::time::timeout(limit, &mut answer).await {
        Ok(answer) => Ok(answer),
        Err(_) if own.is_lifted.load(Ordering::Relaxed) => Ok(answer.await),
        Err(_) => Err(ApiError::TimedOut { limit }),
    }
}

/// Returns the answer to a request whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the payload over by value")]
pub(super) fn answer_panic(payload: Box<dyn Any + Send>) -> Response {
    ApiError::of_panic(&*payload).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{
        Extension,
        body::Body,
        http::StatusCode,
        middleware,
        routing::{MethodRouter, get},
    };
    use tower::ServiceExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Returns the status of a request to `handler`, and the time that it took.
    async fn asked(handler: MethodRouter) -> (StatusCode, Duration) {
        let limit = middleware::from_fn_with_state(LIMIT, limit_time);
        let router = Router::new().route("/", handler).layer(limit);
        let began = tokio::time::Instant::now();
        let response = router.oneshot(Request::new(Body::empty())).await.expect("an answer");
        (response.status(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_at_its_limit_unless_the_handler_lifts_it() {
        let slow = || async { tokio::time::sleep(3 * LIMIT).await };
        assert_eq!(asked(get(slow)).await, (StatusCode::GATEWAY_TIMEOUT, LIMIT));
        let under_way = |Extension(limit): Extension<TimeLimit>| async move {
            tokio::time::sleep(LIMIT / 2).await;
            limit.lift();
            tokio::time::sleep(3 * LIMIT).await;
        };
        assert_eq!(asked(get(under_way)).await, (StatusCode::OK, LIMIT / 2 + 3 * LIMIT));
        let too_late = |Extension(limit): Extension<TimeLimit>| async move {
            tokio::time::sleep(2 * LIMIT).await;
            limit.lift();
        };
        assert_eq!(asked(get(too_late)).await, (StatusCode::GATEWAY_TIMEOUT, LIMIT));
    }
}
