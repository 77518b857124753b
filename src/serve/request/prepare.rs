//! Preparation of checked inputs for plans, off the async threads.

use std::{
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::inputs::{self, IMAGE, Inputs, TEXT, refuse};
use crate::{
    assembly::Family,
    input::{
        ModelInput, PictureError, Pixels, TokenizeError, Tokenizer, decode_picture, decoding_bytes,
    },
    runtime::Executor,
    serve::{error::ServeError, planner::Planner, workers::yielding::give_way},
};

/// Preparation of inputs on at most as many threads as there are cores. More threads would only
/// take the processor from those that answer.
#[derive(Debug, Clone)]
pub(crate) struct Preparing {
    turns: Arc<Semaphore>,
    num_cores: u32,
}

/// An input that plans read, and its preparation time.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) input: ModelInput,
    /// Time to prepare the input, without waiting.
    pub(crate) took: Duration,
}

impl Default for Preparing {
    fn default() -> Self {
        let num_cores = available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(num_cores));
        Self { turns, num_cores: u32::try_from(num_cores).unwrap_or(u32::MAX) }
    }
}

impl Preparing {
    /// Returns the time that each of `num_workers` loses while inputs are prepared for `time`. The
    /// workers use all cores together.
    pub(crate) fn share(&self, time: Duration, num_workers: usize) -> Duration {
        let num_workers = u32::try_from(num_workers).unwrap_or(u32::MAX).min(self.num_cores);
        time * num_workers / self.num_cores
    }

    /// Tokenizes texts for `anchor`, decodes image files, or checks token ids against the
    /// vocabulary of `anchor`.
    pub(crate) async fn run(
        &self,
        planner: &Planner,
        inputs: Inputs,
        anchor: &str,
    ) -> Result<Ready, ServeError> {
        let family = &planner.loaded.family;
        match inputs {
            Inputs::Ready(input) => {
                if let ModelInput::Tokens(encoding) = &input {
                    inputs::check_vocabulary(encoding, family.vocabulary_size(anchor))?;
                }
                Ok(Ready { input, took: Duration::ZERO })
            }
            Inputs::Texts(texts) => {
                let tokenizer = tokenizer(family, anchor)?;
                let encode = move || {
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    tokenizer.encode(&texts)
                };
                let refused = |reason: TokenizeError| {
                    refuse(TEXT, &format!("it cannot be tokenized: {reason}"))
                };
                let (encoded, took) = self.on_thread(encode).await?;
                let input = encoded.map(ModelInput::Tokens).map_err(refused)?;
                Ok(Ready { input, took })
            }
            Inputs::Pictures(files) => {
                let executor = planner.executor().ok_or(ServeError::WorkerGone)?;
                let decode = move || decode_all(&files, &executor);
                let (decoded, took) = self.on_thread(decode).await?;
                Ok(Ready { input: ModelInput::Pixels(decoded?), took })
            }
        }
    }

    /// Runs `work` on a blocking thread at its turn. Returns its result and the time it took.
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), ServeError> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| ServeError::Broken { what: "the turns are closed" })?;
        // The turn ends with the work, even if the caller no longer waits for it.
        let work = move || {
            let _turn = turn;
            give_way();
            let start = Instant::now();
            let done = work();
            (done, start.elapsed())
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| ServeError::Panicked)
    }
}

fn tokenizer(family: &Family, anchor: &str) -> Result<Arc<Tokenizer>, ServeError> {
    let broken = ServeError::Broken { what: "an anchor that reads texts has no tokenizer" };
    family.tokenizer(anchor).cloned().ok_or(broken)
}

/// Decodes image files one after another, each after reserving the memory for it.
fn decode_all(files: &[Vec<u8>], executor: &Executor) -> Result<Pixels, ServeError> {
    let manifest = &executor.family().manifest;
    let broken = ServeError::Broken { what: "a family of images has no section `image`" };
    let spec = manifest.image.as_ref().ok_or(broken)?;
    let limits = &manifest.limits;
    let max_pixels = limits.max_pixels;
    let mut values = Vec::new();
    for (index, bytes) in files.iter().enumerate() {
        let file = inputs::image_file(bytes, limits)?;
        let refused = |error: PictureError| refuse(IMAGE, &format!("image {index}: {error}"));
        let bytes = decoding_bytes(&file, spec, max_pixels).map_err(refused)?;
        let _room = executor.reserve_bytes(bytes).map_err(|error| {
            tracing::error!(family = manifest.name, %error, "an image cannot be decoded");
            let state = "an image does not fit into the memory limit";
            ServeError::Unavailable { name: manifest.name.clone(), state }
        })?;
        values.extend(decode_picture(&file, spec, max_pixels).map_err(refused)?.values);
    }
    Ok(Pixels { shape: [spec.channels, spec.height, spec.width], values })
}
