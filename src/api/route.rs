//! One route: its address, its handler, and the content that it reads and writes.

use std::sync::Arc;

use axum::routing::MethodRouter;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::state::Shared;

/// Path of a model's metadata, at which the paths of its other routes start.
pub(super) const MODEL: &str = "/v2/models/{model}";

/// Path of a version of a model; every route of a model is there as well.
pub(super) const VERSION: &str = "/v2/models/{model}/versions/{version}";

/// A route with one method.
pub(super) struct Route {
    /// Method in lower case.
    pub(super) method: &'static str,
    /// Path with its parameters in braces.
    pub(super) path: &'static str,
    /// Summary for a person.
    pub(super) about: &'static str,
    /// Handler.
    pub(super) handler: MethodRouter<Arc<Shared>>,
    /// Numbers in the query, by name, with their defaults.
    pub(super) query: &'static [(&'static str, usize)],
    /// Content of the request, if it has a body.
    pub(super) request: Option<Content>,
    /// Content of the answer.
    pub(super) response: Content,
}

/// Content of a body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content {
    /// JSON of a type's schema.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// JSON, with or without raw tensors behind it.
    JsonOrRaw(fn(&mut SchemaGenerator) -> Schema),
    /// Server-sent events, whose data is JSON of a type's schema.
    Events(fn(&mut SchemaGenerator) -> Schema),
    /// Plain text.
    Text,
    /// HTML page.
    Page,
    /// No content.
    Empty,
}

/// Returns the content JSON with the schema of `T`.
pub(super) fn json_of<T: JsonSchema>() -> Content {
    Content::Json(|generator| generator.subschema_for::<T>())
}

/// Returns the content JSON with the schema of `T`, or JSON with raw tensors behind it.
pub(super) fn json_or_raw<T: JsonSchema>() -> Content {
    Content::JsonOrRaw(|generator| generator.subschema_for::<T>())
}

/// Returns the content of server-sent events with the schema of `T`.
pub(super) fn events_of<T: JsonSchema>() -> Content {
    Content::Events(|generator| generator.subschema_for::<T>())
}

impl Route {
    /// Returns the path under a version of the model, or `None` if the route is not a model's.
    pub(super) fn versioned(&self) -> Option<String> {
        let rest = self.path.strip_prefix(MODEL)?;
        Some(format!("{VERSION}{rest}"))
    }
}
