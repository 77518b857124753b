//! The HTTP routes as an OpenAPI 3.1 document, from the types that they read and write.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{Html, IntoResponse},
};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    error::{OpenAiError, WireError},
    http::health::VERSION,
    route::{Content, Route},
    state::Shared,
};

/// Page that shows the document to a person.
const PAGE: &str = include_str!("openapi.html");

/// Name of the security scheme of bearer tokens.
const TOKEN: &str = "token";

/// Returns the document.
pub(super) async fn openapi(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], shared.document.clone())
}

/// Returns the page.
pub(super) async fn docs() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

/// Content security policy of the page, which loads nothing from elsewhere.
const PAGE_POLICY: &str =
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// Returns the document of `routes`.
pub(super) fn document(routes: &[Route]) -> Value {
    let settings = || {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        settings
    };
    let mut read = settings().for_deserialize().into_generator();
    let mut written = settings().for_serialize().into_generator();
    let mut paths = Map::new();
    for route in routes {
        let described = route.describe(&mut read, &mut written);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = described;
    }
    let mut schemas = read.take_definitions(true);
    schemas.extend(written.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tessera",
            "version": VERSION,
            "description": "The Open Inference Protocol v2 with budgets, and OpenAI's embeddings.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {TOKEN: {"type": "http", "scheme": "bearer"}},
        },
        // A server without a file of clients needs no token.
        "security": [{}, {TOKEN: []}],
    })
}

impl Route {
    fn describe(&self, read: &mut SchemaGenerator, written: &mut SchemaGenerator) -> Value {
        let error = match self.path.starts_with("/v1/") {
            true => written.subschema_for::<OpenAiError>(),
            false => written.subschema_for::<WireError<'_>>(),
        };
        let error = json!({"application/json": {"schema": error}});
        let mut described = json!({
            "summary": self.about,
            "operationId": self.id(),
            "parameters": self.parameters(),
            "responses": {
                "200": with_content("It worked", self.response.describe(written)),
                "default": with_content("It did not", error),
            },
        });
        if let Some(request) = self.request {
            described["requestBody"] = json!({"content": request.describe(read)});
        }
        described
    }

    /// Returns an operation id for generated clients, such as `post_v2_models_model_infer`.
    fn id(&self) -> String {
        let words = self.path.split(|c: char| !c.is_ascii_alphanumeric());
        let words = words.filter(|word| !word.is_empty());
        std::iter::once(self.method).chain(words).collect::<Vec<_>>().join("_")
    }

    fn parameters(&self) -> Vec<Value> {
        let mut parameters = Vec::new();
        if self.path.contains("{model}") {
            parameters.push(json!({"name": "model", "in": "path", "required": true,
                                   "schema": {"type": "string"}}));
        }
        for (name, default) in self.query {
            let schema = json!({"type": "integer", "minimum": 1, "default": default});
            parameters.push(json!({"name": name, "in": "query", "schema": schema}));
        }
        parameters
    }
}

impl Content {
    fn describe(self, generator: &mut SchemaGenerator) -> Option<Value> {
        match self {
            Self::Json(schema) => Some(json!({"application/json": {"schema": schema(generator)}})),
            Self::JsonOrRaw(schema) => Some(json!({
                "application/json": {"schema": schema(generator)},
                "application/octet-stream": {},
            })),
            Self::Events(schema) => {
                Some(json!({"text/event-stream": {"schema": schema(generator)}}))
            }
            Self::Text => Some(json!({"text/plain": {"schema": {"type": "string"}}})),
            Self::Page => Some(json!({"text/html": {"schema": {"type": "string"}}})),
            Self::Empty => None,
        }
    }
}

fn with_content(description: &str, content: impl Into<Option<Value>>) -> Value {
    match content.into() {
        Some(content) => json!({"description": description, "content": content}),
        None => json!({"description": description}),
    }
}
