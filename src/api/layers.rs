//! What happens around every request: a span, a time limit, a net for panics, bodies for errors.

use std::{
    any::Any,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::{Instrument, Span, field::Empty};

use super::{Shared, error::ApiError};

/// The header with the id under which the log knows a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Runs a request in a span of its own, and gives its failure a body with the request's id.
pub(super) async fn trace(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let number = shared.num_requests.fetch_add(1, Ordering::Relaxed);
    let request_id = format!("{}-{number}", std::process::id());
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        id = request_id,
        method = %request.method(),
        path,
        model = Empty,
        plan = Empty,
        status = Empty,
    );
    answer(request_id, request, next).instrument(span).await
}

async fn answer(request_id: String, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        tracing::debug!(%error, "refused");
        *response.body_mut() = error.render(&request_id);
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    Span::current().record("status", response.status().as_u16());
    tracing::debug!("answered");
    if let Ok(request_id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    response
}

/// Gives up a request that takes longer than `limit`, the arrival of its body included.
pub(super) async fn limit_time(
    State(limit): State<Duration>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    tokio::time::timeout(limit, next.run(request)).await.map_err(|_| ApiError::TimedOut { limit })
}

/// Answers a request whose handler panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the payload over by value")]
pub(super) fn answer_panic(payload: Box<dyn Any + Send>) -> Response {
    let message = payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "without a message".to_owned());
    ApiError::Panicked { message }.into_response()
}
