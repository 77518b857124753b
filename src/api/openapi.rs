//! The HTTP routes as an OpenAPI 3.1 document, from the types that they read and write.
//!
//! [`operations`] lists the routes. A test checks that it has the routes of the index page and few
//! others.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{Html, IntoResponse},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    codec::{decode::WireRequest, encode::WireResponse},
    error::{OpenAiError, WireError},
    http::{
        health::{Liveness, Readiness, ServerMetadata, VERSION},
        models::{Metadata, ModelReadiness},
        openai::{Answer, List, Listed, Question},
        plans::{WireChoice, WireFront, WireQuestion},
        repository::{AllStatistics, IndexQuestion, RepositoryCall},
    },
    triton::messages::{ModelConfig, repository_index_response::ModelIndex},
};

/// Page that shows the document to a person.
const PAGE: &str = include_str!("openapi.html");

/// Name of the security scheme of bearer tokens.
const TOKEN: &str = "token";

/// Content of a body.
#[derive(Clone, Copy)]
enum Content {
    /// JSON of a type's schema.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// JSON, with or without raw tensors behind it.
    JsonOrRaw(fn(&mut SchemaGenerator) -> Schema),
    /// Plain text.
    Text,
    /// HTML page.
    Page,
    /// No content.
    Empty,
}

/// One method of one route.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    request: Option<Content>,
    response: Content,
}

fn json_of<T: JsonSchema>() -> Content {
    Content::Json(|generator| generator.subschema_for::<T>())
}

fn json_or_raw<T: JsonSchema>() -> Content {
    Content::JsonOrRaw(|generator| generator.subschema_for::<T>())
}

const fn get(path: &'static str, summary: &'static str, response: Content) -> Operation {
    Operation { method: "get", path, summary, request: None, response }
}

const fn post(
    path: &'static str,
    summary: &'static str,
    request: Content,
    response: Content,
) -> Operation {
    Operation { method: "post", path, summary, request: Some(request), response }
}

/// Returns the operations of every route but those under a version, which repeat the model's.
fn operations() -> Vec<Operation> {
    let mut operations = Vec::from(server_operations());
    operations.extend(model_operations());
    operations.extend(repository_operations());
    operations.extend(openai_operations());
    operations
}

fn server_operations() -> [Operation; 7] {
    [
        get("/", "Lists the routes and the models for a person", Content::Text),
        get("/openapi.json", "This document", json_of::<Value>()),
        get("/docs", "This document for a person", Content::Page),
        get("/metrics", "Prometheus metrics", Content::Text),
        get("/v2", "Describes the server", json_of::<ServerMetadata>()),
        get("/v2/health/live", "Tells that the process runs", json_of::<Liveness>()),
        get("/v2/health/ready", "Tells whether the server is ready", json_of::<Readiness>()),
    ]
}

fn model_operations() -> [Operation; 8] {
    let plan = (json_of::<WireQuestion>(), json_of::<WireChoice<'_>>());
    let infer = (json_or_raw::<WireRequest>(), json_or_raw::<WireResponse<'_>>());
    [
        get("/v2/models/stats", "Tells what every model has answered", json_of::<AllStatistics>()),
        get("/v2/models/{model}", "Describes a model", json_of::<Metadata>()),
        get(
            "/v2/models/{model}/ready",
            "Tells whether a model is ready",
            json_of::<ModelReadiness>(),
        ),
        get(
            "/v2/models/{model}/config",
            "Describes a model as a Triton configuration",
            json_of::<ModelConfig>(),
        ),
        get(
            "/v2/models/{model}/stats",
            "Tells what a model has answered",
            json_of::<AllStatistics>(),
        ),
        get(
            "/v2/models/{model}/plans",
            "Lists the plans that no other beats",
            json_of::<WireFront<'_>>(),
        ),
        post("/v2/models/{model}/plan", "Names the plan that a budget would get", plan.0, plan.1),
        post("/v2/models/{model}/infer", "Answers within a budget", infer.0, infer.1),
    ]
}

fn repository_operations() -> [Operation; 3] {
    let index = (json_of::<IndexQuestion>(), json_of::<Vec<ModelIndex>>());
    let call = json_of::<RepositoryCall>();
    let of_model = |path, summary| post(path, summary, call, Content::Empty);
    [
        post("/v2/repository/index", "Lists the models of the pool", index.0, index.1),
        of_model("/v2/repository/models/{model}/load", "Loads a model, or loads it anew"),
        of_model("/v2/repository/models/{model}/unload", "Stops serving a model"),
    ]
}

fn openai_operations() -> [Operation; 3] {
    let embeddings = (json_of::<Question>(), json_of::<Answer<'_>>());
    [
        get("/v1/models", "Lists the models with embeddings", json_of::<List>()),
        get("/v1/models/{model}", "Names a model", json_of::<Listed>()),
        post("/v1/embeddings", "Embeds texts within a budget", embeddings.0, embeddings.1),
    ]
}

/// Returns the document.
pub(super) async fn openapi() -> impl IntoResponse {
    axum::Json(&*DOCUMENT)
}

/// Returns the page.
pub(super) async fn docs() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

/// Content security policy of the page, which loads nothing from elsewhere.
const PAGE_POLICY: &str =
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The document, which is the same for every request.
static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// Builds the document.
fn document() -> Value {
    let settings = || {
        let mut settings = SchemaSettings::draft2020_12();
        settings.definitions_path = "/components/schemas".into();
        settings
    };
    let mut read = settings().for_deserialize().into_generator();
    let mut written = settings().for_serialize().into_generator();
    let mut paths = Map::new();
    for operation in operations() {
        let described = operation.describe(&mut read, &mut written);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described;
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

impl Operation {
    fn describe(&self, read: &mut SchemaGenerator, written: &mut SchemaGenerator) -> Value {
        let error = match self.path.starts_with("/v1/") {
            true => written.subschema_for::<OpenAiError>(),
            false => written.subschema_for::<WireError<'_>>(),
        };
        let error = json!({"application/json": {"schema": error}});
        let mut described = json!({
            "summary": self.summary,
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
        if self.path.ends_with("/plans") {
            for (name, default) in [("batch", 1), ("tokens", 128)] {
                let schema = json!({"type": "integer", "minimum": 1, "default": default});
                parameters.push(json!({"name": name, "in": "query", "schema": schema}));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::index::ROUTES;

    #[test]
    fn the_document_has_the_routes_of_the_index_page() {
        let listed: Vec<(String, String)> = ROUTES
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let method = words.next().filter(|word| matches!(*word, "GET" | "POST"))?;
                Some((method.to_ascii_lowercase(), words.next()?.to_owned()))
            })
            .collect();
        let operations = operations();
        for (method, path) in &listed {
            let is_there = operations.iter().any(|o| o.method == method && o.path == path);
            assert!(is_there, "{method} {path}");
        }
        // The page need not list itself, nor routes that share a line with another route.
        assert!(operations.len() <= listed.len() + 4, "{} routes", operations.len());
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        for rest in text.split("\"$ref\":\"").skip(1) {
            let target = rest.split('"').next().expect("a target");
            let name = target.strip_prefix("#/components/schemas/").expect(target);
            assert!(schemas.contains_key(name), "{name}");
        }
        assert!(schemas.len() > 20);
    }
}
