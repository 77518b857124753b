//! The HTTP edge: the Open Inference Protocol v2 with JSON tensors, budgets and plans.
//!
//! The only room that names axum. It decodes and encodes; what a request means and what happens to
//! it is decided in [`serve`](crate::serve); below that only plain data types are used. Start at
//! [`router`], which lists the routes; [`serve()`] runs them on a socket until told to stop.

mod body;
mod classes;
mod decode;
mod elements;
mod encode;
mod error;
mod health;
mod infer;
mod inputs;
mod layers;
mod models;
mod parameters;
mod plans;
mod server;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

pub use server::serve;

use crate::{
    serve::{Observer, Registry},
    tensor::ByteSize,
};

/// The routes, as the index page shows them.
const ROUTES: &str = "\
GET  /v2                          server metadata
GET  /v2/health/live              200 while the process runs
GET  /v2/health/ready             200 while it takes requests
GET  /v2/models/{model}           metadata: inputs, outputs, task, limits
GET  /v2/models/{model}/ready     200 while the model takes requests
POST /v2/models/{model}/infer     inference within a budget
GET  /v2/models/{model}/plans     the Pareto front (?batch=1&tokens=128)
POST /v2/models/{model}/plan      the plan that a budget would get
GET  /metrics                     Prometheus metrics
Every model route also exists under /v2/models/{model}/versions/{version}.
";

/// What the routes work with; cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// The families.
    pub registry: Arc<Registry>,
    /// Hears of requests that are refused before they reach their family.
    pub observer: Arc<dyn Observer>,
    /// Writes the metrics in the Prometheus text format.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl ApiState {
    /// Gathers what the routes work with; the fields say what each part is.
    pub fn new(
        registry: Arc<Registry>,
        observer: Arc<dyn Observer>,
        render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Self {
        Self { registry, observer, render_metrics }
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApiState").finish_non_exhaustive()
    }
}

/// What requests may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiConfig {
    /// The largest body; larger ones are answered 413.
    pub max_body: ByteSize,
    /// The longest time from the head of a request to its answer; after it the answer is 504.
    pub request_timeout: Duration,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { max_body: ByteSize(16 << 20), request_timeout: Duration::from_secs(30) }
    }
}

/// What every handler sees.
#[derive(Debug)]
struct Shared {
    api: ApiState,
    config: ApiConfig,
    num_requests: AtomicU64,
}

/// Builds the routes.
pub fn router(state: ApiState, config: &ApiConfig) -> Router {
    let shared = Arc::new(Shared { api: state, config: *config, num_requests: AtomicU64::new(0) });
    let model = Router::new()
        .route("/", get(models::metadata))
        .route("/ready", get(models::ready))
        .route("/infer", post(infer::infer))
        .route("/plans", get(plans::front))
        .route("/plan", post(plans::choose));
    Router::new()
        .route("/", get(health::index))
        .route("/metrics", get(health::metrics))
        .route("/v2", get(health::server))
        .route("/v2/health/live", get(health::live))
        .route("/v2/health/ready", get(health::ready))
        .nest("/v2/models/{model}", model.clone())
        .nest("/v2/models/{model}/versions/{version}", model)
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::no_method)
        .layer(DefaultBodyLimit::max(config.max_body.as_usize()))
        .layer(middleware::from_fn_with_state(config.request_timeout, layers::limit_time))
        .layer(CatchPanicLayer::custom(layers::answer_panic))
        .layer(middleware::from_fn_with_state(shared.clone(), layers::trace))
        .with_state(shared)
}
