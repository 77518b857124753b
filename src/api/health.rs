//! The routes about the server as a whole.

use std::{fmt::Write, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;

use super::{ROUTES, Shared};
use crate::serve::FamilyState;

/// The server as the protocol describes it.
#[derive(Debug, Serialize)]
pub(super) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 4],
}

/// Whether the process runs.
#[derive(Debug, Serialize)]
pub(super) struct Liveness {
    live: bool,
}

/// Whether the server takes requests.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    ready: bool,
}

/// Tells that the process runs.
pub(super) async fn live() -> Json<Liveness> {
    Json(Liveness { live: true })
}

/// Tells whether at least one model takes requests.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let ready = shared.api.registry.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready }))
}

/// Describes the server.
pub(super) async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["budgets", "plans", "server_timing", "metrics"],
    })
}

/// Writes the metrics in the Prometheus text format.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, (shared.api.render_metrics)())
}

/// Lists the routes and the models for a person.
pub(super) async fn index(State(shared): State<Arc<Shared>>) -> String {
    let mut page = format!("Tessera {}\n\n{ROUTES}\n", env!("CARGO_PKG_VERSION"));
    for (name, state) in shared.api.registry.families() {
        let state = match state {
            FamilyState::Ready(_) => "ready",
            FamilyState::Failed { .. } => "failed to load; the log says why",
        };
        writeln!(page, "model {name}: {state}").expect("writing to a string cannot fail");
    }
    page
}
