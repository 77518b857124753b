//! State and settings of the handlers.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use tracing::Span;

use super::access::Gate;
use crate::{
    serve::{Observer, Repository},
    tensor::ByteSize,
};

/// State that the routes share; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// Families of the server.
    pub repository: Arc<Repository>,
    /// Observer of requests that are refused before they reach their family.
    pub observer: Arc<dyn Observer>,
    /// Function that writes the metrics in the Prometheus text format.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Gate that requests pass.
    pub gate: Arc<Gate>,
    /// Function that makes a request's span part of the trace that its headers name.
    pub continue_trace: ContinueTrace,
}

/// Function that makes a span part of the trace that `traceparent` and `tracestate` name (W3C Trace
/// Context).
pub type ContinueTrace = Arc<dyn Fn(&Span, Option<&str>, Option<&str>) + Send + Sync>;

impl ApiState {
    /// Creates the state. Its gate is open, and no trace is continued.
    pub fn new(
        repository: Arc<Repository>,
        observer: Arc<dyn Observer>,
        render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Self {
        let continue_trace: ContinueTrace = Arc::new(|_, _, _| {});
        Self { repository, observer, render_metrics, gate: Arc::default(), continue_trace }
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApiState").finish_non_exhaustive()
    }
}

/// Limits of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiConfig {
    /// Largest body; a larger one is answered 413.
    pub max_body: ByteSize,
    /// Longest time from the head of a request to its answer; after it the answer is 504.
    pub request_timeout: Duration,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { max_body: ByteSize(16 << 20), request_timeout: Duration::from_secs(30) }
    }
}

/// State and limits that every handler sees.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) api: ApiState,
    pub(super) config: ApiConfig,
    /// OpenAPI document of the routes as JSON, made when it is first asked for.
    pub(super) document: LazyLock<Bytes>,
    /// Lines of the index page, one for each route.
    pub(super) index: String,
}
