//! Routes about the server as a whole.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    api::{layers::authorization, state::Shared},
    serve::FamilyState,
};

/// Name of the server.
pub(crate) const NAME: &str = env!("CARGO_PKG_NAME");

/// Version of the server.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Extensions of the protocol that are served: Triton's by its names, then Tessera's own.
pub(crate) const EXTENSIONS: [&str; 9] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
    "budgets",
    "plans",
    "server_timing",
    "metrics",
];

/// Metadata of the server, in the protocol's form.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 9],
}

/// Liveness of the server.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Liveness {
    live: bool,
}

/// Readiness of the server to take requests.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Readiness {
    ready: bool,
    /// Reason why the server is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Models that did not load, with the reasons, for clients that may send requests.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<String, String>,
}

/// Answers that the process runs.
pub(crate) async fn live() -> Json<Liveness> {
    Json(Liveness { live: true })
}

/// Returns whether the server takes requests: no model is loading, and at least one is ready.
pub(crate) async fn ready(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> impl IntoResponse {
    let registry = shared.api.repository.registry();
    let reason = registry.unready();
    let (ready, status) = match reason {
        None => (true, StatusCode::OK),
        Some(_) => (false, StatusCode::SERVICE_UNAVAILABLE),
    };
    let failed = match shared.api.gate.identify(authorization(&headers)) {
        Ok(_) => registry.failures().into_iter().collect(),
        Err(_) => BTreeMap::new(),
    };
    (status, Json(Readiness { ready, reason, failed }))
}

/// Returns the metadata of the server.
pub(crate) async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata { name: NAME, version: VERSION, extensions: EXTENSIONS })
}

/// Returns the metrics in the Prometheus text format.
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, (shared.api.render_metrics)())
}

/// Lists the routes for a person, and the models for a client that may send requests.
pub(crate) async fn index(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> String {
    let mut page = format!("Tessera {VERSION}\n\n{}\n", shared.index);
    if shared.api.gate.identify(authorization(&headers)).is_err() {
        return page;
    }
    for (name, state) in shared.api.repository.registry().families() {
        let state = match state {
            FamilyState::Ready(_) => Cow::from("ready"),
            FamilyState::Loading => "loading".into(),
            FamilyState::Unloaded => "unloaded".into(),
            FamilyState::Failed { reason } => format!("failed to load: {reason}").into(),
        };
        writeln!(page, "model {name}: {state}").expect("writing to a string cannot fail");
    }
    page
}
