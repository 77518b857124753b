//! Request bodies: read within the limit, and parsed off the async threads if that takes long.

use std::sync::Arc;

use axum::{
    body::HttpBody,
    extract::{
        FromRequest, Request,
        rejection::{BytesRejection, FailedToBufferBody},
    },
};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{bounds::Bounds, packed::Coding};
use crate::api::{error::ApiError, json_error, state::Shared};

/// Most bytes of JSON that an async thread parses or writes; they take well under 500 µs.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// A whole request body, regardless of its content type.
pub(crate) struct Body(pub(crate) Bytes);

impl FromRequest<Arc<Shared>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let limit = shared.config.max_body;
        let coding = Coding::of(request.headers())?;
        // If a body declares to be too large, nothing of it is read or asked for.
        if request.body().size_hint().lower() > limit.0 {
            return Err(ApiError::BodyTooLarge { limit });
        }
        let bytes = match Bytes::from_request(request, shared).await {
            Ok(bytes) => bytes,
            Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_))) => {
                return Err(ApiError::BodyTooLarge { limit });
            }
            Err(rejection) => {
                return Err(ApiError::BodyUnreadable { source: Box::new(rejection) });
            }
        };
        let Some(coding) = coding else {
            return Ok(Self(bytes));
        };
        // Few compressed bytes may unpack to as large a body as the limit allows.
        off_thread(limit.as_usize(), move || coding.unpack(&bytes, limit)).await.map(Self)
    }
}

/// Parses `bytes` as JSON whose content is within `bounds`.
pub(crate) fn parse_json<T: DeserializeOwned>(
    bytes: &[u8],
    bounds: &Bounds,
) -> Result<T, ApiError> {
    bounds.check_json(bytes)?;
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::NotUtf8 { valid_bytes: error.valid_up_to() })?;
    Ok(json_error::read(text)?)
}

/// Parses the JSON of a request without tensors; an empty body gives the default.
pub(crate) async fn read_or_default<T>(bytes: Bytes) -> Result<T, ApiError>
where
    T: DeserializeOwned + Default + Send + 'static,
{
    if bytes.is_empty() {
        return Ok(T::default());
    }
    off_thread(bytes.len(), move || parse_json(&bytes, &Bounds::NO_TENSORS)).await
}

/// Number of raw bytes that are read or written in the time of one byte of JSON.
const RAW_PER_JSON: usize = 16;

/// Returns the bytes of JSON that take as long as `json` bytes of JSON and `raw` raw bytes.
pub(crate) fn in_json_bytes(json: usize, raw: usize) -> usize {
    json.saturating_add(raw / RAW_PER_JSON)
}

/// Runs `work` on `num_bytes` bytes of JSON: here if they are few, else on a blocking thread.
pub(crate) async fn off_thread<T: Send + 'static>(
    num_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if num_bytes <= MAX_INLINE_BYTES {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| ApiError::Interrupted { source: Box::new(source) })?
}
