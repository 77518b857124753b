//! The HTTP routes and the layers around them.

use std::sync::Arc;

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

use super::{
    error,
    http::{health, infer, models, openai, plans, repository},
    layers, openapi,
    state::{ApiConfig, ApiState, Shared},
};

/// Size in bytes of the smallest answer that is compressed, if the client accepts that.
const MIN_COMPRESSED_BYTES: u64 = 2048;

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
