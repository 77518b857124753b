//! Network interfaces: the Open Inference Protocol v2 over HTTP and gRPC, with budgets and plans.
//!
//! Only this module names axum and tonic. It decodes and encodes; [`serve`](crate::serve) decides
//! the meaning of a request. Below [`serve`](crate::serve), only plain data types are used. Start
//! at [`router`], which lists the routes. [`serve_http`] and [`serve_grpc`] run them on sockets
//! until they are told to stop.

mod body;
mod bounded;
mod bounds;
mod classes;
mod clients;
mod decode;
mod describe;
mod elements;
mod encode;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod grpc;
mod health;
mod infer;
mod inputs;
mod layers;
mod messages;
mod models;
mod openai;
mod openapi;
mod packed;
mod parameters;
mod plans;
mod raw;
mod repository;
mod request_id;
mod specs;
mod tensors;
mod transport;

use std::{fmt, io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};
use tower_http::{
    CompressionLevel,
    catch_panic::CatchPanicLayer,
    compression::{CompressionLayer, predicate::SizeAbove},
};

pub use clients::{Clients, ClientsError, Gate};
pub use grpc::serve_grpc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::Span;
pub use transport::{Limits, Tls, TlsError, TlsFiles, Transport};
use transport::{Protocol, Server};

use crate::{
    serve::{Observer, Repository},
    tensor::ByteSize,
};

/// Routes, as the index page shows them.
const ROUTES: &str = "\
GET  /v2                          server metadata
GET  /v2/health/live              200 while the process runs
GET  /v2/health/ready             200 while it takes requests
GET  /v2/models/{model}           metadata: inputs, outputs, task, limits
GET  /v2/models/{model}/ready     200 while the model takes requests
POST /v2/models/{model}/infer     inference within a budget
GET  /v2/models/{model}/plans     the Pareto front (?batch=1&tokens=128)
POST /v2/models/{model}/plan      the plan that a budget would get
GET  /v2/models/{model}/config    the model as a Triton configuration
GET  /v2/models/{model}/stats     what the model has answered
GET  /v2/models/stats             what every model has answered
POST /v2/repository/index         the models of the pool
POST /v2/repository/models/{model}/load      load a model, or load it anew
POST /v2/repository/models/{model}/unload    stop serving a model
POST /v1/embeddings               embeddings for OpenAI's clients
GET  /v1/models                   the models with embeddings
GET  /metrics                     Prometheus metrics
GET  /openapi.json                all of this for programs
GET  /docs                        the same for people
Every model route also exists under /v2/models/{model}/versions/{version}.
";

/// Size in bytes of the smallest answer that is compressed, if the client accepts that.
const MIN_COMPRESSED_BYTES: u64 = 2048;

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
struct Shared {
    api: ApiState,
    config: ApiConfig,
}

/// Builds the router of all HTTP routes.
pub fn router(state: ApiState, config: &ApiConfig) -> Router {
    let shared = Arc::new(Shared { api: state, config: *config });
    let model = Router::new()
        .route("/", get(models::metadata))
        .route("/ready", get(models::ready))
        .route("/infer", post(infer::infer))
        .route("/plans", get(plans::front))
        .route("/plan", post(plans::choose))
        .route("/config", get(repository::config))
        .route("/stats", get(repository::statistics));
    Router::new()
        .route("/", get(health::index))
        .route("/openapi.json", get(openapi::openapi))
        .route("/docs", get(openapi::docs))
        .route("/metrics", get(health::metrics))
        .route("/v2", get(health::server))
        .route("/v2/health/live", get(health::live))
        .route("/v2/health/ready", get(health::ready))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{model}", get(openai::model))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v2/models/stats", get(repository::all_statistics))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/models/{model}/load", post(repository::load))
        .route("/v2/repository/models/{model}/unload", post(repository::unload))
        .nest("/v2/models/{model}", model.clone())
        .nest("/v2/models/{model}/versions/{version}", model)
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(config.max_body.as_usize()))
        .layer(middleware::from_fn_with_state(shared.clone(), layers::admit))
        .layer(middleware::from_fn_with_state(config.request_timeout, layers::limit_time))
        .layer(CatchPanicLayer::custom(layers::answer_panic))
        .layer(middleware::from_fn_with_state(shared.clone(), layers::trace))
        .layer(
            CompressionLayer::new()
                .quality(CompressionLevel::Fastest)
                .compress_when(SizeAbove::new(MIN_COMPRESSED_BYTES)),
        )
        .with_state(shared)
}

/// Serves `router` until `shutdown`, then drains. A drain accepts no connections, closes idle ones,
/// and lets running requests end within the transport's limit.
///
/// The caller that cancels `shutdown` starts draining the [`Registry`](crate::serve::Registry)
/// first. Readiness then turns false on the connections that are still open.
///
/// # Errors
///
/// Fails if the socket has no address.
///
/// # Cancel safety
///
/// Dropping the future stops accepting connections; open ones go on until the runtime ends.
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    transport: Transport,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let refusal = layers::refusal();
    let server = Server { protocol: Protocol::Http, router, refusal, transport };
    server.run(listener, shutdown).await
}
