//! From checked inputs to what plans read, off the async threads.

use std::sync::Arc;

use super::{
    ServeError,
    inputs::{self, IMAGE, Inputs, TEXT, refuse},
};
use crate::{
    arch::{Family, ModelInput, Pixels, Tokenizer, decode_picture},
    family::ImageSpec,
};

/// Tokenizes texts for `anchor`, decodes image files, and checks token ids against its vocabulary.
pub(super) async fn prepare(
    family: &Arc<Family>,
    inputs: Inputs,
    anchor: &str,
) -> Result<ModelInput, ServeError> {
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
            let family = family.clone();
            let decode = move || {
                let spec = family.manifest.image.as_ref().ok_or(ServeError::WorkerGone)?;
                decode_all(&files, spec, family.manifest.limits.max_pixels)
            };
            let decoded = tokio::task::spawn_blocking(decode).await;
            decoded.map_err(|_| ServeError::WorkerGone)?.map(ModelInput::Pixels)
        }
    }
}

fn tokenizer(family: &Family, anchor: &str) -> Result<Arc<Tokenizer>, ServeError> {
    family.tokenizer(anchor).cloned().ok_or(ServeError::WorkerGone)
}

fn decode_all(files: &[Vec<u8>], spec: &ImageSpec, max_pixels: u64) -> Result<Pixels, ServeError> {
    let mut values = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let pixels = decode_picture(file, spec, max_pixels)
            .map_err(|error| refuse(IMAGE, &format!("image {index}: {error}")))?;
        values.extend(pixels.values);
    }
    Ok(Pixels { shape: [spec.channels, spec.height, spec.width], values })
}
