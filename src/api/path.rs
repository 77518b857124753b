//! Parameters in a request's path.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::{error::ApiError, state::Shared};

/// Parameters in a request's path, percent-decoded.
pub(super) struct InPath<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Shared>> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, shared).await {
            Ok(Path(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(ApiError::Path {
                path: parts.uri.path().to_owned(),
                reason: rejection.body_text(),
            }),
        }
    }
}
