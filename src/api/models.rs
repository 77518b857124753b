//! A model's metadata and readiness, and the way from a path to a model.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::request::Parts,
};
use serde::{Deserialize, Serialize};
use tracing::Span;

use super::{Shared, error::ApiError};
use crate::{
    family::{Limits, Manifest},
    serve::{FamilyService, ServeError},
    tensor::TensorSpec,
};

/// The version that every model has, whatever it consists of.
const VERSION: &str = "1";

/// The model that a path names.
#[derive(Debug)]
pub(super) struct Model {
    /// Answers its requests.
    pub(super) service: Arc<FamilyService>,
    /// The version as the path has it.
    pub(super) version: String,
}

#[derive(Debug, Deserialize)]
struct ModelPath {
    model: String,
    version: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for Model {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let Path(path) = Path::<ModelPath>::from_request_parts(parts, shared)
            .await
            .map_err(|_| ApiError::NoRoute { path: parts.uri.path().to_owned() })?;
        let service = shared.api.registry.family(&path.model)?;
        Span::current().record("model", service.name());
        let version = path.version.unwrap_or_else(|| VERSION.to_owned());
        if version != VERSION && version != service.digest() {
            return Err(ApiError::UnknownVersion {
                model: path.model,
                version,
                known: format!("`{VERSION}`, which is `{}`", service.digest()),
            });
        }
        Ok(Self { service, version })
    }
}

/// A model as the protocol describes it.
#[derive(Debug, Serialize)]
pub(super) struct Metadata {
    name: String,
    versions: [String; 2],
    platform: &'static str,
    inputs: Vec<WireSpec>,
    outputs: Vec<WireSpec>,
    parameters: MetadataParameters,
}

#[derive(Debug, Serialize)]
struct WireSpec {
    name: String,
    datatype: &'static str,
    shape: Vec<i64>,
}

#[derive(Debug, Serialize)]
struct MetadataParameters {
    task: String,
    description: String,
    license: String,
    metric: String,
    max_batch: usize,
    #[serde(flatten)]
    limits: InputLimits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
}

/// What one input may hold.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum InputLimits {
    Texts { max_tokens: usize, max_text_bytes: usize },
    Images { max_image_bytes: usize, max_pixels: u64 },
}

/// Describes a model.
pub(super) async fn metadata(model: Model) -> Json<Metadata> {
    let manifest = model.service.manifest();
    let parameters = MetadataParameters {
        task: manifest.task.clone(),
        description: manifest.description.clone(),
        license: manifest.license.clone(),
        metric: manifest.quality.metric.name().to_owned(),
        max_batch: manifest.limits.max_batch,
        limits: InputLimits::of(manifest),
        labels: manifest.output.labels.clone(),
    };
    Json(Metadata {
        name: model.service.name().to_owned(),
        versions: [VERSION.to_owned(), model.service.digest().to_owned()],
        platform: "tessera_onnxruntime",
        inputs: model.service.input_specs().into_iter().map(WireSpec::new).collect(),
        outputs: model.service.output_specs().into_iter().map(WireSpec::new).collect(),
        parameters,
    })
}

impl InputLimits {
    fn of(manifest: &Manifest) -> Self {
        let Limits { max_tokens, max_text_bytes, max_image_bytes, max_pixels, .. } =
            manifest.limits;
        match manifest.image {
            None => Self::Texts { max_tokens, max_text_bytes },
            Some(_) => Self::Images { max_image_bytes, max_pixels },
        }
    }
}

impl WireSpec {
    fn new(spec: TensorSpec) -> Self {
        let (datatype, shape) = (spec.data_type.name(), spec.protocol_shape());
        Self { name: spec.name, datatype, shape }
    }
}

/// Whether a model takes requests.
#[derive(Debug, Serialize)]
pub(super) struct Readiness {
    name: String,
    ready: bool,
}

/// Tells that a model takes requests; one that failed to load is answered by its error.
pub(super) async fn ready(
    State(shared): State<Arc<Shared>>,
    model: Model,
) -> Result<Json<Readiness>, ApiError> {
    if shared.api.registry.is_draining() {
        return Err(ServeError::Draining.into());
    }
    Ok(Json(Readiness { name: model.service.name().to_owned(), ready: true }))
}
