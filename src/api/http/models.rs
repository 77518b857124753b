//! A model's metadata and readiness.

use std::sync::Arc;

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    api::{
        error::ApiError,
        inference::Model,
        state::Shared,
        triton::generate::tensors::{inputs, outputs},
    },
    family::{Limits, Manifest},
    serve::ServeError,
    tensor::TensorSpec,
};

/// Platform of every model.
pub(crate) const PLATFORM: &str = "tessera_onnxruntime";

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
        inputs: inputs(&model).into_iter().map(WireSpec::new).collect(),
        outputs: outputs(&model).into_iter().map(WireSpec::new).collect(),
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
