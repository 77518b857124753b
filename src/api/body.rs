//! Request bodies: read within the limit, parsed off the async threads where that takes long.

use std::sync::Arc;

use axum::extract::{
    FromRequest, Request,
    rejection::{BytesRejection, FailedToBufferBody},
};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Shared, error::ApiError};

/// The most bytes of JSON that are parsed or written on an async thread, well under 500 µs.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// A whole request body, whatever its content type says.
pub(super) struct Body(pub(super) Bytes);

impl FromRequest<Arc<Shared>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        match Bytes::from_request(request, shared).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_))) => {
                Err(ApiError::BodyTooLarge { limit: shared.config.max_body })
            }
            Err(rejection) => Err(ApiError::BodyUnreadable { source: Box::new(rejection) }),
        }
    }
}

/// Parses `text` as JSON.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::NotUtf8 { valid_bytes: error.valid_up_to() })?;
    serde_json::from_str(text).map_err(|source| ApiError::Json { source })
}

/// How many raw bytes are read or written in the time that one byte of JSON takes.
const RAW_PER_JSON: usize = 16;

/// Returns how many bytes of JSON take as long as `json` of them and `raw` bytes beside them.
pub(super) fn in_json_bytes(json: usize, raw: usize) -> usize {
    json.saturating_add(raw / RAW_PER_JSON)
}

/// Runs `work` on `num_bytes` bytes of JSON here, or on a blocking thread where it would hold up
/// this one.
pub(super) async fn off_thread<T: Send + 'static>(
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
