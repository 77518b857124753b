//! The families of the pool at run time, and their statistics: Triton's repository, configuration
//! and statistics routes.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, read_or_default},
            bounded,
        },
        error::ApiError,
        inference::Model,
        path::InPath,
        state::Shared,
        triton::{
            describe,
            messages::{ModelConfig, ModelStatistics, repository_index_response::ModelIndex},
        },
    },
    serve::{Repository, ServeError},
};

/// Only parameter that load and unload calls take.
const UNLOAD_DEPENDENTS: &str = "unload_dependents";

/// Request for the index of the pool.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "IndexRequest")]
#[serde(expecting = "a JSON object")]
pub(crate) struct IndexQuestion {
    #[serde(default, deserialize_with = "bounded::or_default")]
    ready: bool,
}

/// Body of a load or unload call.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "RepositoryRequest")]
#[serde(expecting = "a JSON object")]
pub(crate) struct RepositoryCall {
    #[serde(default, deserialize_with = "bounded::parameters")]
    parameters: Map<String, Value>,
}

/// Statistics of one or more models.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AllStatistics {
    model_stats: Vec<ModelStatistics>,
}

/// Returns a model as a Triton configuration.
pub(crate) async fn config(model: Model) -> Json<ModelConfig> {
    Json(describe::config(&model))
}

/// Returns the statistics of a model.
pub(crate) async fn statistics(model: Model) -> Json<AllStatistics> {
    Json(AllStatistics { model_stats: vec![describe::statistics(&model)] })
}

/// Returns the statistics of every model.
pub(crate) async fn all_statistics(State(shared): State<Arc<Shared>>) -> Json<AllStatistics> {
    let models = Model::all(shared.api.repository.registry());
    Json(AllStatistics { model_stats: models.iter().map(describe::statistics).collect() })
}

/// Lists the families of the pool.
pub(crate) async fn index(
    State(shared): State<Arc<Shared>>,
    Body(body): Body,
) -> Result<Json<Vec<ModelIndex>>, ApiError> {
    let question: IndexQuestion = read_or_default(body).await?;
    Ok(Json(describe::index(&shared.api.repository, question.ready)))
}

/// Loads a family, or loads it again.
pub(crate) async fn load(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    InPath(name): InPath<String>,
    Body(body): Body,
) -> Result<(), ApiError> {
    check_call(&permit, body).await?;
    change(&shared.api.repository, move |repository| repository.load(&name)).await
}

/// Takes a family out of service.
pub(crate) async fn unload(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    InPath(name): InPath<String>,
    Body(body): Body,
) -> Result<(), ApiError> {
    check_call(&permit, body).await?;
    change(&shared.api.repository, move |repository| repository.unload(&name)).await
}

/// Checks that the client may load and unload models, and that the parameters are known.
async fn check_call(permit: &Permit, body: Bytes) -> Result<(), ApiError> {
    permit.check_admin()?;
    let call: RepositoryCall = read_or_default(body).await?;
    check_parameters(call.parameters.keys())
}

/// Checks the parameters of a load or unload call, which cannot give a model's files, for example.
///
/// # Errors
///
/// Fails on any parameter but `unload_dependents`.
pub(crate) fn check_parameters<'a>(
    names: impl Iterator<Item = &'a String>,
) -> Result<(), ApiError> {
    for name in names {
        if name != UNLOAD_DEPENDENTS {
            let known = UNLOAD_DEPENDENTS.into();
            return Err(ApiError::UnknownParameter { name: name.clone(), known });
        }
    }
    Ok(())
}

/// Changes the served models, off the async threads.
///
/// # Errors
///
/// Fails if the change fails.
pub(crate) async fn change(
    repository: &Arc<Repository>,
    work: impl FnOnce(&Repository) -> Result<(), ServeError> + Send + 'static,
) -> Result<(), ApiError> {
    let repository = repository.clone();
    tokio::task::spawn_blocking(move || work(&repository))
        .await
        .map_err(|source| ApiError::Interrupted { source: Box::new(source) })?
        .map_err(ApiError::from)
}
