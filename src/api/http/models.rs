//! A model's metadata and readiness, and the lookup of a model by its path.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::request::Parts,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Span;

use crate::{
    api::{error::ApiError, state::Shared},
    family::{Limits, Manifest},
    serve::{FamilyService, FamilyState, Registry, ServeError},
    tensor::TensorSpec,
};

/// Version that every model has, whatever its content.
const VERSION: &str = "1";

/// Platform of every model.
pub(crate) const PLATFORM: &str = "tessera_onnxruntime";

/// The model that a request names.
#[derive(Debug)]
pub(crate) struct Model {
    /// Service that answers requests to the model.
    pub(crate) service: Arc<FamilyService>,
    /// Version that the request names, or [`VERSION`].
    pub(crate) version: String,
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
        Self::find(shared.api.repository.registry(), &path.model, path.version)
    }
}

impl Model {
    /// Finds the model `name` in `version`, or in its current version if `version` is `None`.
    ///
    /// # Errors
    ///
    /// Fails if there is no such model or version, or if the model is not served.
    pub(crate) fn find(
        registry: &Registry,
        name: &str,
        version: Option<String>,
    ) -> Result<Self, ApiError> {
        let service = registry.family(name)?;
        Span::current().record("model", service.name());
        let version = version.unwrap_or_else(|| VERSION.to_owned());
        if version != VERSION && version != service.digest() {
            return Err(ApiError::UnknownVersion {
                model: name.to_owned(),
                version: version.chars().take(100).collect(),
                known: format!("`{VERSION}`, which is `{}`", service.digest()),
            });
        }
        Ok(Self { service, version })
    }

    /// Returns every model that is served.
    pub(crate) fn all(registry: &Registry) -> Vec<Self> {
        let ready = |(_, state)| match state {
            FamilyState::Ready(service) => Some(Self { service, version: VERSION.to_owned() }),
            FamilyState::Loading | FamilyState::Failed { .. } | FamilyState::Unloaded => None,
        };
        registry.families().into_iter().filter_map(ready).collect()
    }

    /// Returns the versions by which requests can name the model.
    pub(crate) fn versions(&self) -> [String; 2] {
        [VERSION.to_owned(), self.service.digest().to_owned()]
    }
}

/// Metadata of a model, in the protocol's form.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Metadata {
    name: String,
    versions: [String; 2],
    platform: &'static str,
    inputs: Vec<WireSpec>,
    outputs: Vec<WireSpec>,
    parameters: MetadataParameters,
}

#[derive(Debug, Serialize, JsonSchema)]
struct WireSpec {
    name: String,
    datatype: &'static str,
    shape: Vec<i64>,
}

#[derive(Debug, Serialize, JsonSchema)]
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

/// Limits of one input.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum InputLimits {
    Texts { max_tokens: usize, max_text_bytes: usize },
    Images { max_image_bytes: usize, max_pixels: u64 },
}

/// Returns the metadata of a model.
pub(crate) async fn metadata(model: Model) -> Json<Metadata> {
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
        versions: model.versions(),
        platform: PLATFORM,
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

/// Readiness of a model to take requests.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelReadiness {
    name: String,
    ready: bool,
}

/// Answers that a model takes requests. A model that failed to load is answered with its error.
pub(crate) async fn ready(
    State(shared): State<Arc<Shared>>,
    model: Model,
) -> Result<Json<ModelReadiness>, ApiError> {
    if shared.api.repository.registry().is_draining() {
        return Err(ServeError::Draining.into());
    }
    Ok(Json(ModelReadiness { name: model.service.name().to_owned(), ready: true }))
}
