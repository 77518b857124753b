//! Answers to failed requests: one status, one code, one message.

use std::{any::Any, borrow::Cow, error::Error, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

use super::json_error::JsonError;
use crate::{
    plan::{ChooseError, Infeasible},
    serve::{ErrorCode, ServeError},
    tensor::{ByteSize, chain, panic_literal},
};

/// Most characters of a message; names in a request may be as long as its body.
const MAX_MESSAGE_CHARS: usize = 2000;

/// Error for a request that is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The family refused the request or failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The body is not JSON, or not of the form that the route takes.
    #[error("the body is not a valid request: {reason}")]
    Json { reason: JsonError },
    /// The message is not one of the protocol's.
    #[error("the message is not a valid request: {reason}")]
    Message { reason: String },
    /// The body is not UTF-8.
    #[error("the body is not UTF-8 after {valid_bytes} bytes")]
    NotUtf8 { valid_bytes: usize },
    /// The header with the length of the JSON before raw tensors is wrong.
    #[error("Inference-Header-Content-Length is {found}, it must lie in 0..={limit}")]
    JsonLength { found: String, limit: usize },
    /// The body is larger than the limit.
    #[error("the body is over the limit of {} bytes", limit.0)]
    BodyTooLarge { limit: ByteSize },
    /// The body has a compression that is not known.
    #[error("the body's Content-Encoding must be gzip, deflate or identity")]
    Encoding,
    /// The body or message does not have the compression that it declares.
    #[error("what is compressed cannot be read: {reason}")]
    Packed { reason: std::io::Error },
    /// A stream was without messages for too long.
    #[error("nothing was sent on the stream for {limit:?}")]
    IdleStream { limit: Duration },
    /// The number of open connections is at its limit.
    #[error("too many connections are open; try again later")]
    TooManyConnections,
    /// The connection broke in the middle of the body.
    #[error("the body cannot be read")]
    BodyUnreadable { source: Box<dyn Error + Send + Sync> },
    /// The request has no token but needs one.
    #[error("this server needs a token: Authorization: Bearer …")]
    NoToken,
    /// The token belongs to no client.
    #[error("the token is not known")]
    WrongToken,
    /// The client may not load or unload models.
    #[error("client `{client}` may not load or unload models")]
    NoAdmin { client: String },
    /// The client asks more often than it may.
    #[error("client `{client}` asks too often; wait for {wait:?}")]
    RateLimited { client: String, wait: Duration },
    /// A parameter is not known.
    #[error("unknown parameter `{name}`; known: {known}")]
    UnknownParameter { name: String, known: Cow<'static, str> },
    /// A parameter has a wrong value.
    #[error("parameter `{name}` is {found}, but must be {expected}")]
    Parameter { name: String, found: String, expected: &'static str },
    /// The request asks for an output that the model does not have.
    #[error("output `{name}`: the model has no such output; it has {known}")]
    UnknownOutput { name: String, known: String },
    /// The version asked for does not exist.
    #[error("model `{model}` has no version `{version}`; it has {known}")]
    UnknownVersion { model: String, version: String, known: String },
    /// No route has this path.
    #[error("there is nothing at {path}; GET / lists the routes")]
    NoRoute { path: String },
    /// The path leads to a route, but a parameter in it cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Path { path: String, reason: String },
    /// The route exists, but not for this method.
    #[error("{path} does not take {method}")]
    NoMethod { path: String, method: Method },
    /// The request took longer than the limit.
    #[error("the request took longer than {limit:?}")]
    TimedOut { limit: Duration },
    /// A handler panicked.
    #[error("a handler panicked: {message}")]
    Panicked { message: String },
    /// A blocking task ended without a result.
    #[error("a blocking task did not end")]
    Interrupted { source: Box<dyn Error + Send + Sync> },
    /// An answer cannot be written.
    #[error("the answer cannot be written")]
    Encode { source: Box<dyn Error + Send + Sync> },
}

/// Body of a failure.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct WireError<'a> {
    error: String,
    code: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cheapest: Option<WireCheapest<'a>>,
}

/// Body of a failure in the form that OpenAI's clients read.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OpenAiError {
    error: OpenAiReason,
}

#[derive(Debug, Serialize, JsonSchema)]
struct OpenAiReason {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: &'static str,
    request_id: String,
}

/// The cheapest plan, for a request whose budget no plan meets.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Cheapest")]
struct WireCheapest<'a> {
    plan: &'a str,
    predicted_latency_ms: f64,
    least_latency_budget_ms: f64,
    memory_mb: f64,
    quality: f64,
}

impl ApiError {
    /// Returns the error for a handler that panicked with `payload`.
    pub(super) fn of_panic(payload: &(dyn Any + Send)) -> Self {
        Self::Panicked { message: panic_literal(payload).to_owned() }
    }

    /// Returns the code of the failure.
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::Serve(error) => error.code(),
            Self::Json { .. }
            | Self::Message { .. }
            | Self::Packed { .. }
            | Self::NotUtf8 { .. }
            | Self::JsonLength { .. }
            | Self::BodyUnreadable { .. }
            | Self::Encoding
            | Self::UnknownParameter { .. }
            | Self::Parameter { .. }
            | Self::UnknownOutput { .. }
            | Self::Path { .. }
            | Self::NoMethod { .. } => ErrorCode::InvalidArgument,
            Self::NoToken | Self::WrongToken => ErrorCode::Unauthenticated,
            Self::NoAdmin { .. } => ErrorCode::PermissionDenied,
            Self::RateLimited { .. } => ErrorCode::Overloaded,
            Self::UnknownVersion { .. } | Self::NoRoute { .. } => ErrorCode::NotFound,
            Self::BodyTooLarge { .. } => ErrorCode::TooLarge,
            Self::TooManyConnections => ErrorCode::Unavailable,
            Self::TimedOut { .. } | Self::IdleStream { .. } => ErrorCode::DeadlineExceeded,
            Self::Panicked { .. } | Self::Interrupted { .. } | Self::Encode { .. } => {
                ErrorCode::Internal
            }
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => status(self.code()),
        }
    }

    fn infeasible(&self) -> Option<&Infeasible> {
        match self {
            Self::Serve(ServeError::Choose(error)) => match error.as_ref() {
                ChooseError::Infeasible(infeasible) => Some(infeasible),
                ChooseError::NotFound { .. } => None,
            },
            _ => None,
        }
    }

    /// Returns the seconds to wait before the request may succeed, at least one. Returns None if no
    /// time is known.
    fn retry_after_seconds(&self) -> Option<u64> {
        let wait = match self {
            Self::Serve(
                ServeError::QueueFull { retry_after, .. } | ServeError::Late { retry_after },
            ) => *retry_after,
            Self::RateLimited { wait, .. } => *wait,
            Self::TooManyConnections => Duration::from_secs(1),
            _ if self.code() == ErrorCode::Overloaded => Duration::from_secs(1),
            _ => return None,
        };
        Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }

    /// Returns the message for the client; the details of an internal error go to the log.
    pub(super) fn message(&self) -> String {
        if self.code() != ErrorCode::Internal {
            return self.shortened();
        }
        tracing::error!(error = chain(self), "internal error");
        "internal error".to_owned()
    }

    /// Returns the error in words, without the end of a long text that the request has in a name's
    /// place.
    pub(super) fn shortened(&self) -> String {
        let mut text = self.to_string();
        if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE_CHARS) {
            text.truncate(end);
            text.push('…');
        }
        text
    }

    /// Returns the body in the form that OpenAI's clients read.
    pub(super) fn openai(&self, request_id: &str) -> OpenAiError {
        let kind = match self.code() {
            ErrorCode::InvalidArgument
            | ErrorCode::NotFound
            | ErrorCode::TooLarge
            | ErrorCode::BudgetInfeasible => "invalid_request_error",
            ErrorCode::Unauthenticated => "authentication_error",
            ErrorCode::PermissionDenied => "permission_error",
            ErrorCode::Overloaded => "rate_limit_error",
            ErrorCode::Cancelled
            | ErrorCode::Internal
            | ErrorCode::Unavailable
            | ErrorCode::DeadlineExceeded => "server_error",
        };
        let error = OpenAiReason {
            message: self.message(),
            kind,
            param: self.field(),
            code: self.openai_code(),
            request_id: request_id.to_owned(),
        };
        OpenAiError { error }
    }

    /// Returns the field of the request that is wrong, or `None` if it is none alone.
    pub(super) fn field(&self) -> Option<String> {
        match self {
            Self::Json { reason } => reason.field(),
            Self::Serve(ServeError::Budget(error)) => Some(error.parameter().to_owned()),
            Self::UnknownParameter { name, .. }
            | Self::Parameter { name, .. }
            | Self::Serve(ServeError::Input { name, .. }) => Some(name.clone()),
            _ => None,
        }
    }

    /// Returns the code of the failure by which OpenAI's clients know it.
    fn openai_code(&self) -> &'static str {
        match self {
            Self::Serve(ServeError::Context { .. }) => "context_length_exceeded",
            _ => self.code().name(),
        }
    }

    /// Writes the body in the form that OpenAI's clients read.
    pub(super) fn render_openai(&self, request_id: &str) -> Body {
        let json = serde_json::to_vec(&self.openai(request_id));
        Body::from(json.expect("strings can be written as JSON"))
    }

    /// Writes the body with `request_id`, the id of the request in the log.
    pub(super) fn render(&self, request_id: &str) -> Body {
        let cheapest = self.infeasible().map(WireCheapest::new);
        let body =
            WireError { error: self.message(), code: self.code().name(), request_id, cheapest };
        let json = serde_json::to_vec(&body).expect("strings and numbers can be written as JSON");
        Body::from(json)
    }
}

impl From<JsonError> for ApiError {
    fn from(reason: JsonError) -> Self {
        Self::Json { reason }
    }
}

impl<'a> WireCheapest<'a> {
    fn new(infeasible: &'a Infeasible) -> Self {
        let cheapest = &infeasible.cheapest;
        Self {
            plan: &cheapest.id,
            predicted_latency_ms: cheapest.latency_seconds * 1e3,
            least_latency_budget_ms: infeasible.least_latency_budget().as_secs_f64() * 1e3,
            memory_mb: ByteSize(cheapest.memory_bytes).megabytes(),
            quality: cheapest.quality,
        }
    }
}

/// Creates a response without a body. [`layers::trace`](super::layers::trace), which knows the
/// request's id, adds the body.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        if let Some(seconds) = self.retry_after_seconds() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code() == ErrorCode::Unauthenticated {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// Answers a request for a path that no route has.
pub(super) async fn no_route(uri: Uri) -> ApiError {
    ApiError::NoRoute { path: uri.path().to_owned() }
}

/// Answers a request with a method that its route does not have.
pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::NoMethod { path: uri.path().to_owned(), method }
}

/// Returns the HTTP status of a failure.
fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::BudgetInfeasible => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Cancelled => StatusCode::from_u16(499).expect("499 is between 100 and 999"),
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_status() {
        for (code, expected) in [
            (ErrorCode::InvalidArgument, 400),
            (ErrorCode::Unauthenticated, 401),
            (ErrorCode::PermissionDenied, 403),
            (ErrorCode::NotFound, 404),
            (ErrorCode::TooLarge, 413),
            (ErrorCode::BudgetInfeasible, 422),
            (ErrorCode::Overloaded, 429),
            (ErrorCode::Cancelled, 499),
            (ErrorCode::Internal, 500),
            (ErrorCode::Unavailable, 503),
            (ErrorCode::DeadlineExceeded, 504),
        ] {
            assert_eq!(status(code).as_u16(), expected, "{code:?}");
        }
    }

    #[test]
    fn a_message_is_short_however_long_a_name_is() {
        let error = ApiError::NoRoute { path: "/é".repeat(1 << 20) };
        assert_eq!(error.message().chars().count(), MAX_MESSAGE_CHARS + 1);
        let error = ApiError::NoRoute { path: "/v2".to_owned() };
        assert_eq!(error.message(), error.to_string());
    }

    #[test]
    fn a_panic_s_message_is_kept_only_if_it_was_not_put_together() {
        let literal: &str = "a broken promise";
        for (payload, expected) in [
            (Box::new(literal) as Box<dyn Any + Send>, literal),
            (Box::new("a text".to_owned()), "its message is withheld"),
        ] {
            let error = ApiError::of_panic(&*payload).to_string();
            assert_eq!(error, format!("a handler panicked: {expected}"));
        }
    }

    #[test]
    fn an_overloaded_server_says_when_to_come_back() {
        for (retry_after, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
            let retry_after = Duration::from_millis(retry_after);
            for error in
                [ServeError::QueueFull { limit: 8, retry_after }, ServeError::Late { retry_after }]
            {
                let response = ApiError::from(error).into_response();
                assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
                assert_eq!(response.headers()[header::RETRY_AFTER], expected);
            }
        }
    }
}
