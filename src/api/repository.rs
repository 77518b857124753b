//! The families of the pool at run time, and what they have answered: Triton's repository,
//! configuration and statistics routes.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Shared,
    body::{Body, parse_json},
    clients::Permit,
    describe,
    error::ApiError,
    messages::{ModelConfig, ModelStatistics, repository_index_response::ModelIndex},
    models::Model,
};
use crate::serve::{Repository, ServeError};

/// The only parameter of load and unload calls that is taken.
const UNLOAD_DEPENDENTS: &str = "unload_dependents";

/// What of the index is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "IndexRequest")]
#[serde(expecting = "a JSON object")]
pub(super) struct IndexQuestion {
    #[serde(default)]
    ready: bool,
}

/// What a load or unload call says beside the name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "RepositoryRequest")]
#[serde(expecting = "a JSON object")]
pub(super) struct RepositoryCall {
    #[serde(default)]
    parameters: BTreeMap<String, Value>,
}

/// The statistics of some models.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AllStatistics {
    model_stats: Vec<ModelStatistics>,
}

/// Describes a model as a Triton configuration.
pub(super) async fn config(model: Model) -> Json<ModelConfig> {
    Json(describe::config(&model))
}

/// Tells what a model has answered.
pub(super) async fn statistics(model: Model) -> Json<AllStatistics> {
    Json(AllStatistics { model_stats: vec![describe::statistics(&model)] })
}

/// Tells what every model has answered.
pub(super) async fn all_statistics(State(shared): State<Arc<Shared>>) -> Json<AllStatistics> {
    let models = Model::all(shared.api.repository.registry());
    Json(AllStatistics { model_stats: models.iter().map(describe::statistics).collect() })
}

/// Lists the families of the pool.
pub(super) async fn index(
    State(shared): State<Arc<Shared>>,
    Body(body): Body,
) -> Result<Json<Vec<ModelIndex>>, ApiError> {
    let question: IndexQuestion = parse_or_default(&body)?;
    Ok(Json(describe::index(&shared.api.repository, question.ready)))
}

/// Loads a family, or loads it anew.
pub(super) async fn load(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    Path(name): Path<String>,
    Body(body): Body,
) -> Result<(), ApiError> {
    check_call(&permit, &body)?;
    change(&shared.api.repository, move |repository| repository.load(&name)).await
}

/// Takes a family out of service.
pub(super) async fn unload(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    Path(name): Path<String>,
    Body(body): Body,
) -> Result<(), ApiError> {
    check_call(&permit, &body)?;
    change(&shared.api.repository, move |repository| repository.unload(&name)).await
}

/// Checks who calls, and what for.
fn check_call(permit: &Permit, body: &[u8]) -> Result<(), ApiError> {
    permit.check_admin()?;
    let call: RepositoryCall = parse_or_default(body)?;
    check_parameters(call.parameters.keys())
}

/// Refuses what load and unload calls do not take, such as a model's files.
///
/// # Errors
///
/// Fails on any parameter but `unload_dependents`.
pub(super) fn check_parameters<'a>(
    names: impl Iterator<Item = &'a String>,
) -> Result<(), ApiError> {
    for name in names {
        if name != UNLOAD_DEPENDENTS {
            return Err(ApiError::UnknownParameter {
                name: name.clone(),
                known: UNLOAD_DEPENDENTS,
            });
        }
    }
    Ok(())
}

/// Changes what is served, off the async threads.
///
/// # Errors
///
/// Fails when the change does.
pub(super) async fn change(
    repository: &Arc<Repository>,
    work: impl FnOnce(&Repository) -> Result<(), ServeError> + Send + 'static,
) -> Result<(), ApiError> {
    let repository = repository.clone();
    tokio::task::spawn_blocking(move || work(&repository))
        .await
        .map_err(|source| ApiError::Interrupted { source: Box::new(source) })?
        .map_err(ApiError::from)
}

fn parse_or_default<T: Default + serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.is_empty() { Ok(T::default()) } else { parse_json(body) }
}
