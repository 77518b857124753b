//! From checked inputs to what plans read, off the async threads.

use std::sync::Arc;

use super::{
    ServeError,
    inputs::{self, IMAGE, Inputs, TEXT, refuse},
    planner::Planner,
};
use crate::{
    arch::{Family, ModelInput, PictureError, Pixels, Tokenizer, decode_picture, decoding_bytes},
    runtime::Executor,
};

/// Tokenizes texts for `anchor`, decodes image files, and checks token ids against its vocabulary.
pub(super) async fn prepare(
    planner: &Planner,
    inputs: Inputs,
    anchor: &str,
) -> Result<ModelInput, ServeError> {
    let family = &planner.loaded.family;
    match inputs {
        Inputs::Ready(ModelInput::Tokens(encoding)) => {
            inputs::check_vocabulary(&encoding, family.vocabulary_size(anchor))?;
            Ok(ModelInput::Tokens(encoding))
        }
        Inputs::Ready(input) => Ok(input),
        Inputs::Texts(texts) => {
            let tokenizer = tokenizer(family, anchor)?;
            let encode = move || {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                tokenizer.encode(&texts)
            };
            let encoded = tokio::task::spawn_blocking(encode).await;
            let encoded = encoded.map_err(|_| ServeError::WorkerGone)?;
            let refused = |reason| refuse(TEXT, &format!("it cannot be tokenized: {reason}"));
            encoded.map(ModelInput::Tokens).map_err(refused)
        }
        Inputs::Pictures(files) => {
            let executor = planner.executor().ok_or(ServeError::WorkerGone)?;
            let decode = move || decode_all(&files, &executor);
            let decoded = tokio::task::spawn_blocking(decode).await;
            decoded.map_err(|_| ServeError::WorkerGone)?.map(ModelInput::Pixels)
        }
    }
}

fn tokenizer(family: &Family, anchor: &str) -> Result<Arc<Tokenizer>, ServeError> {
    family.tokenizer(anchor).cloned().ok_or(ServeError::WorkerGone)
}

/// Decodes image files one after another, each when there is memory for it.
fn decode_all(files: &[Vec<u8>], executor: &Executor) -> Result<Pixels, ServeError> {
    let manifest = &executor.family().manifest;
    let spec = manifest.image.as_ref().ok_or(ServeError::WorkerGone)?;
    let max_pixels = manifest.limits.max_pixels;
    let mut values = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let refused = |error: PictureError| refuse(IMAGE, &format!("image {index}: {error}"));
        let bytes = decoding_bytes(file, spec, max_pixels).map_err(refused)?;
        let _room = executor.reserve_bytes(bytes).map_err(|error| {
            tracing::error!(family = manifest.name, %error, "an image cannot be decoded");
            let state = "an image does not fit into the memory limit";
            ServeError::Unavailable { name: manifest.name.clone(), state }
        })?;
        values.extend(decode_picture(file, spec, max_pixels).map_err(refused)?.values);
    }
    Ok(Pixels { shape: [spec.channels, spec.height, spec.width], values })
}
