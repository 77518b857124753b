//! The families of the pool at run time.

use std::sync::Arc;

use crate::{
    api::{
        error::ApiError,
        http::repository::{change, check_parameters},
        triton::{
            describe,
            messages::{
                RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
                RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
                RepositoryModelUnloadResponse,
            },
        },
    },
    serve::Repository,
};

/// Lists the families of the pool.
pub(super) async fn index(
    repository: &Repository,
    request: RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse, ApiError> {
    check_pool(&request.repository_name)?;
    Ok(RepositoryIndexResponse { models: describe::index(repository, request.ready) })
}

/// Loads a family, or loads it again.
pub(super) async fn load(
    repository: &Arc<Repository>,
    request: RepositoryModelLoadRequest,
) -> Result<RepositoryModelLoadResponse, ApiError> {
    check_pool(&request.repository_name)?;
    check_parameters(request.parameters.keys())?;
    change(repository, move |repository| repository.load(&request.model_name)).await?;
    Ok(RepositoryModelLoadResponse {})
}

/// Takes a family out of service.
pub(super) async fn unload(
    repository: &Arc<Repository>,
    request: RepositoryModelUnloadRequest,
) -> Result<RepositoryModelUnloadResponse, ApiError> {
    check_pool(&request.repository_name)?;
    check_parameters(request.parameters.keys())?;
    change(repository, move |repository| repository.unload(&request.model_name)).await?;
    Ok(RepositoryModelUnloadResponse {})
}

fn check_pool(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Ok(());
    }
    let found = name.chars().take(32).collect();
    let name = "repository_name".to_owned();
    Err(ApiError::Parameter { name, found, expected: "empty: there is one pool" })
}
