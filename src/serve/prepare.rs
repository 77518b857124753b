//! From checked inputs to what plans read, off the async threads.

use std::{sync::Arc, thread::available_parallelism};

use tokio::sync::Semaphore;

use super::{
    ServeError,
    inputs::{self, IMAGE, Inputs, TEXT, refuse},
};
use crate::{
    arch::{Family, ModelInput, Pixels, Tokenizer, decode_picture},
    family::{ImageSpec, Limits},
};

/// Prepares inputs on no more threads than there are cores: more would only take the processor from
/// those that answer.
#[derive(Debug, Clone)]
pub(super) struct Preparing {
    turns: Arc<Semaphore>,
}

impl Default for Preparing {
    fn default() -> Self {
        let num_cores = available_parallelism().map_or(1, usize::from);
        Self { turns: Arc::new(Semaphore::new(num_cores)) }
    }
}

impl Preparing {
    /// Tokenizes texts for `anchor`, decodes image files, and checks token ids against its
    /// vocabulary.
    pub(super) async fn run(
        &self,
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
                let refused = |reason| refuse(TEXT, &format!("it cannot be tokenized: {reason}"));
                self.on_thread(encode).await?.map(ModelInput::Tokens).map_err(refused)
            }
            Inputs::Pictures(files) => {
                let family = family.clone();
                let decode = move || {
                    let spec = family.manifest.image.as_ref().ok_or(ServeError::WorkerGone)?;
                    decode_all(&files, spec, &family.manifest.limits)
                };
                self.on_thread(decode).await?.map(ModelInput::Pixels)
            }
        }
    }

    /// Runs `work` on a blocking thread when it is its turn.
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServeError> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| ServeError::WorkerGone)?;
        // The turn ends with the work, also where nobody waits for it any more.
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| ServeError::WorkerGone)
    }
}

fn tokenizer(family: &Family, anchor: &str) -> Result<Arc<Tokenizer>, ServeError> {
    family.tokenizer(anchor).cloned().ok_or(ServeError::WorkerGone)
}

fn decode_all(
    files: &[Vec<u8>],
    spec: &ImageSpec,
    limits: &Limits,
) -> Result<Pixels, ServeError> {
    let mut values = Vec::new();
    for (index, bytes) in files.iter().enumerate() {
        let file = inputs::image_file(bytes, limits)?;
        let pixels = decode_picture(&file, spec, limits.max_pixels)
            .map_err(|error| refuse(IMAGE, &format!("image {index}: {error}")))?;
        values.extend(pixels.values);
    }
    Ok(Pixels { shape: [spec.channels, spec.height, spec.width], values })
}
