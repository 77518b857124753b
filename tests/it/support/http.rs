//! The routes of the server in this process, and answers read to their end.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tessera::{
    api::{ApiState, Limits, Transport},
    telemetry::Metrics,
};
use tower::ServiceExt;

use super::{Families, PATIENCE, Served};

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Returns the body as JSON, having checked the status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// Returns the header `name`.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().expect("a header of text")
    }
}

/// Returns the state of routes over two small families.
pub(crate) fn state() -> ApiState {
    Served::new(Families::small()).state()
}

/// Returns a transport that takes at most `max_connections` connections.
pub(crate) fn transport(max_connections: usize) -> Transport {
    let limits = Limits {
        max_connections,
        max_streams: 8,
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        write_timeout: PATIENCE,
        drain_timeout: PATIENCE,
    };
    Transport::new(limits, None, Arc::new(Metrics::new().expect("metrics")))
}

/// Returns the routes over two small families.
pub(crate) fn app() -> Router {
    Served::new(Families::small()).app()
}

/// Sends a request and reads the answer.
pub(crate) async fn send(app: &Router, method: &str, path: &str, body: impl Into<Body>) -> Reply {
    let request = Request::builder().method(method).uri(path).body(body.into()).expect("a request");
    let response = app.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    let text = String::from_utf8(bytes.to_vec()).expect("a body of text");
    Reply { status: parts.status.as_u16(), headers: parts.headers, text }
}

/// Sends a GET of `path` and reads the answer.
pub(crate) async fn get(app: &Router, path: &str) -> Reply {
    send(app, "GET", path, Body::empty()).await
}

/// Sends an inference request to the text family and reads the answer.
pub(crate) async fn infer(app: &Router, request: &Value) -> Reply {
    send(app, "POST", "/v2/models/text/infer", request.to_string()).await
}

/// Returns a request for the embedding of one text.
pub(crate) fn text_request(parameters: Value) -> Value {
    json!({
        "parameters": parameters,
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Hello there!"]}],
    })
}
