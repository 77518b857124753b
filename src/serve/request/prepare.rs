//! Preparation of checked inputs for plans, off the async threads, and estimates of it.

use std::{
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::inputs::{self, IMAGE, Inputs, TEXT, Texts, refuse};
use crate::{
    assembly::Family,
    input::{
        ModelInput, PictureError, Pixels, TokenizeError, Tokenizer, decode_picture, decoding_bytes,
    },
    plan::Shape,
    runtime::Executor,
    serve::{
        error::ServeError,
        planner::{
            Planner,
            follow::{Bounds, Follower, Rates, Transient},
        },
        workers::yielding::give_way,
    },
};

/// Rates of the tokens-per-byte estimate: it settles at the 1st percentile.
const RATES: Rates = Rates { rise: 0.001, fall: 0.1 };

/// Tokens per byte at first; `BOUNDS` limits the estimate.
const AT_FIRST: f64 = 0.1;
const BOUNDS: Bounds = Bounds { least: 0.025, most: 0.4 };

/// Seconds to prepare a byte without load, and the bounds and rates of the estimate.
const PREPARING: f64 = 1e-7;
const PREPARING_BOUNDS: Bounds = Bounds { least: 1e-9, most: 1e-5 };
const PREPARING_RATES: Rates = Rates { rise: 0.02, fall: 0.02 };

/// Threads that prepare inputs, at most as many as there are cores. More threads would only take
/// the processor from those that answer.
#[derive(Debug, Clone)]
pub(crate) struct PreparingThreads {
    turns: Arc<Semaphore>,
    num_cores: u32,
}

/// Preparation of a family's inputs, and estimates of it. By these, inputs that come too late are
/// refused before they are prepared.
#[derive(Debug)]
pub(crate) struct Preparation {
    threads: PreparingThreads,
    tokens_per_byte: Follower,
    seconds_per_byte: Transient,
    /// Number of tokens at which texts are cut.
    max_tokens: usize,
    /// Number of bytes of a text beyond which its length no longer matters.
    bytes_read: usize,
}

/// Latest time for work to go on.
#[derive(Debug)]
pub(super) struct Term {
    /// Token that is cancelled when nobody waits for the result.
    gone: CancellationToken,
    deadline: Option<Instant>,
}

impl Term {
    fn is_over(&self) -> bool {
        self.gone.is_cancelled() || self.deadline.is_some_and(|deadline| Instant::now() > deadline)
    }
}

/// Estimate of inputs before they are prepared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Expected {
    /// Number of inputs, and the least number of tokens of the longest that is likely.
    pub(crate) shape: Shape,
    /// Time to prepare the inputs.
    pub(crate) time: Duration,
    /// Part of that time which each inference thread loses.
    pub(crate) share: Duration,
}

impl Default for PreparingThreads {
    fn default() -> Self {
        let num_cores = available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(num_cores));
        Self { turns, num_cores: u32::try_from(num_cores).unwrap_or(u32::MAX) }
    }
}

impl Preparation {
    /// Creates the preparation of texts that are cut at `max_tokens`, or of images. Of a text,
    /// `bytes_read` bytes are usually read; None stands for all.
    pub(crate) fn new(
        threads: PreparingThreads,
        max_tokens: usize,
        bytes_read: Option<usize>,
    ) -> Self {
        let tokens_per_byte = Follower::new(AT_FIRST);
        let seconds_per_byte = Transient::new(PREPARING);
        let bytes_read = bytes_read.unwrap_or(usize::MAX);
        Self { threads, tokens_per_byte, seconds_per_byte, max_tokens, bytes_read }
    }

    /// Estimates at `now` the shape of `inputs` and the time to prepare them beside `num_workers`
    /// inference threads.
    pub(crate) fn expect(&self, now: Instant, inputs: &Inputs, num_workers: usize) -> Expected {
        let shape = self.shape(inputs);
        let num_bytes = match inputs {
            Inputs::Texts(texts) => self.text_bytes(&texts.strings),
            Inputs::Pictures(files) => files.iter().map(Vec::len).sum(),
            Inputs::Ready(_) => 0,
        };
        let seconds = self.seconds_per_byte.get(now) * bytes(num_bytes);
        let time = Duration::from_secs_f64(seconds);
        // The inference threads use all cores together.
        let num_workers = u32::try_from(num_workers).unwrap_or(u32::MAX);
        let share = time * num_workers.min(self.threads.num_cores) / self.threads.num_cores;
        Expected { shape, time, share }
    }

    /// Estimates the shape of `inputs`.
    pub(crate) fn shape(&self, inputs: &Inputs) -> Shape {
        match inputs {
            Inputs::Texts(Texts { strings, .. }) => Shape::new(strings.len(), self.tokens(strings)),
            Inputs::Pictures(files) => Shape::new(files.len(), 1),
            Inputs::Ready(input) => input.shape(),
        }
    }

    /// Tokenizes texts for `anchor`, decodes image files, or checks token ids against the
    /// vocabulary of `anchor`. Learns the estimates from what the reference anchor needs. Returns
    /// None if `deadline` passes between two texts or images.
    ///
    /// # Cancel safety
    ///
    /// Work whose future is dropped ends before its next text or image.
    pub(crate) async fn run(
        &self,
        planner: &Planner,
        inputs: Inputs,
        anchor: &str,
        deadline: Option<Instant>,
    ) -> Result<Option<ModelInput>, ServeError> {
        let family = &planner.loaded.family;
        match inputs {
            Inputs::Ready(input) => {
                if let ModelInput::Tokens(encoding) = &input {
                    inputs::check_vocabulary(encoding, family.vocabulary_size(anchor))?;
                }
                Ok(Some(input))
            }
            Inputs::Texts(texts) => {
                let tokenizer = tokenizer(family, anchor)?;
                let (reader, given) = (tokenizer.clone(), texts.clone());
                let encode = move |term: &Term| encode_all(&reader, &given, term);
                let (rows, took) = self.threads.run(deadline, encode).await?;
                let rows = rows?;
                let texts = texts.strings;
                let is_reference = anchor == family.manifest.reference;
                if is_reference {
                    let num_bytes = self.text_bytes(&texts[..rows.len()]);
                    self.learn_time(Instant::now(), num_bytes, took);
                }
                if rows.len() < texts.len() {
                    return Ok(None);
                }
                let input = ModelInput::Tokens(tokenizer.pad(&rows));
                if is_reference {
                    self.learn_tokens(&texts, input.tokens());
                }
                Ok(Some(input))
            }
            Inputs::Pictures(files) => {
                let executor = planner.executor().ok_or(ServeError::WorkerGone)?;
                let sizes: Vec<usize> = files.iter().map(Vec::len).collect();
                let decode = move |term: &Term| decode_all(&files, &executor, term);
                let (decoded, took) = self.threads.run(deadline, decode).await?;
                let pixels = decoded?;
                let num_bytes = sizes.iter().take(pixels.batch()).sum();
                self.learn_time(Instant::now(), num_bytes, took);
                Ok((pixels.batch() == sizes.len()).then_some(ModelInput::Pixels(pixels)))
            }
        }
    }

    /// Returns the number of bytes of `texts` that are usually tokenized.
    fn text_bytes(&self, texts: &[String]) -> usize {
        texts.iter().map(|text| text.len().min(self.bytes_read)).sum()
    }

    /// Learns at `now` that it took `time` to prepare `num_bytes`.
    fn learn_time(&self, now: Instant, num_bytes: usize, time: Duration) {
        let rate = time.as_secs_f64() / bytes(num_bytes.max(1));
        self.seconds_per_byte.follow(now, rate, PREPARING_RATES, PREPARING_BOUNDS);
    }

    /// Returns the least number of tokens that the longest of `texts` is likely to have.
    fn tokens(&self, texts: &[String]) -> usize {
        let rate = self.tokens_per_byte.get();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "texts are bounded, and a part of a token does not count"
        )]
        let tokens = (longest(texts) * rate) as usize;
        tokens.clamp(1, self.max_tokens.max(1))
    }

    /// Learns that the longest of `texts` has `tokens` tokens. Learns nothing if it was cut.
    fn learn_tokens(&self, texts: &[String], tokens: usize) {
        if tokens >= self.max_tokens {
            return;
        }
        let rate = bytes(tokens) / longest(texts).max(1.0);
        self.tokens_per_byte.follow(rate, RATES, BOUNDS);
    }
}

impl PreparingThreads {
    /// Runs `work` on a blocking thread at its turn. Returns its result and the time it took. The
    /// term that it is given ends at `deadline`, or when the caller no longer waits.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&Term) -> T + Send + 'static,
    ) -> Result<(T, Duration), ServeError> {
        let term = Term { gone: CancellationToken::new(), deadline };
        let _gone = term.gone.clone().drop_guard();
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| ServeError::Broken { what: "the turns are closed" })?;
        // The turn ends with the work, even if the caller no longer waits for it.
        let work = move || {
            let _turn = turn;
            give_way();
            let start = Instant::now();
            let done = work(&term);
            (done, start.elapsed())
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| ServeError::Panicked)
    }
}

fn tokenizer(family: &Family, anchor: &str) -> Result<Arc<Tokenizer>, ServeError> {
    let broken = ServeError::Broken { what: "an anchor that reads texts has no tokenizer" };
    family.tokenizer(anchor).cloned().ok_or(broken)
}

/// Returns the token ids of `texts`, of the first ones only if `term` ends before the rest.
fn encode_all(
    tokenizer: &Tokenizer,
    Texts { strings, prompt_name }: &Texts,
    term: &Term,
) -> Result<Vec<Vec<i64>>, ServeError> {
    let broken = ServeError::Broken { what: "an anchor lacks a prompt of its family" };
    let prompt = tokenizer.prompts().find(prompt_name.as_deref()).ok_or(broken)?;
    let refused =
        |reason: TokenizeError| refuse(TEXT, &format!("it cannot be tokenized: {reason}"));
    let in_time =
        strings.iter().enumerate().take_while(|(index, _)| *index == 0 || !term.is_over());
    in_time.map(|(_, text)| tokenizer.encode_behind(prompt, text).map_err(refused)).collect()
}

/// Decodes image files one after another, each after reserving the memory for it. Decodes the first
/// ones only if `term` ends before the rest.
fn decode_all(files: &[Vec<u8>], executor: &Executor, term: &Term) -> Result<Pixels, ServeError> {
    let manifest = &executor.family().manifest;
    let broken = ServeError::Broken { what: "a family of images has no section `image`" };
    let spec = manifest.image.as_ref().ok_or(broken)?;
    let limits = &manifest.limits;
    let max_pixels = limits.max_pixels;
    let mut values = Vec::new();
    for (index, bytes) in files.iter().enumerate() {
        if index > 0 && term.is_over() {
            break;
        }
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

fn longest(texts: &[String]) -> f64 {
    bytes(texts.iter().map(String::len).max().unwrap_or(0))
}

#[expect(clippy::cast_precision_loss, reason = "inputs are bounded")]
fn bytes(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preparation() -> Preparation {
        Preparation::new(PreparingThreads::default(), 512, Some(1_000))
    }

    #[test]
    fn a_text_is_expected_to_be_no_longer_than_others_were() {
        let preparation = preparation();
        let text = |length| vec!["a".repeat(length)];
        assert_eq!(preparation.tokens(&text(0)), 1);
        for index in 0..20_000 {
            preparation.learn_tokens(&text(100), if index % 10 == 0 { 20 } else { 30 });
        }
        let tokens = preparation.tokens(&text(200));
        assert!((30..=42).contains(&tokens), "{tokens}");
    }

    #[tokio::test]
    async fn a_panic_while_inputs_are_prepared_fails_one_request_and_gives_its_turn_back() {
        let threads = PreparingThreads::default();
        let num_turns = threads.turns.available_permits();
        let failed = threads.run(None, |_| panic!("as the test wants")).await.map(|((), _)| ());
        assert!(matches!(failed, Err(ServeError::Panicked)), "{failed:?}");
        assert_eq!(threads.turns.available_permits(), num_turns);
        assert_eq!(threads.run(None, |_| 7).await.expect("its turn comes").0, 7);
    }

    #[test]
    fn bytes_of_a_text_that_are_not_read_take_no_time() {
        let (preparation, now) = (preparation(), Instant::now());
        let time = |lengths: &[usize]| {
            let texts = lengths.iter().map(|length| "a".repeat(*length)).collect();
            preparation.expect(now, &Inputs::Texts(texts), 1).time
        };
        assert_eq!(time(&[1_000_000, 10]), time(&[1_000, 10]));
        assert!(time(&[999]) < time(&[1_000]));
    }

    #[tokio::test]
    async fn work_ends_when_nobody_waits_for_it_or_its_time_has_passed() {
        let threads = PreparingThreads::default();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let work = move |term: &Term| {
            assert!(!term.is_over());
            begun.send(()).expect("the test waits");
            while !term.is_over() {
                std::thread::yield_now();
            }
            ended.send(()).expect("the test waits");
        };
        let waiting = tokio::spawn({
            let threads = threads.clone();
            async move { threads.run(None, work).await.map(|_| ()) }
        });
        has_begun.await.expect("the work begins");
        waiting.abort();
        has_ended.await.expect("the work ends");
        let past = Instant::now().checked_sub(Duration::from_nanos(1));
        let (is_over, _) = threads.run(past, Term::is_over).await.expect("it runs");
        assert!(is_over);
    }

    #[test]
    fn preparing_is_expected_to_take_as_long_as_it_took() {
        let (preparation, now) = (preparation(), Instant::now());
        for _ in 0..1_000 {
            preparation.learn_time(now, 1_000, Duration::from_millis(2));
        }
        let files = Inputs::Pictures(vec![vec![0; 500]; 4]);
        let expected = preparation.expect(now, &files, usize::MAX);
        assert_eq!(expected.shape, Shape::new(4, 1));
        let seconds = expected.time.as_secs_f64();
        assert!((seconds - 0.004).abs() < 1e-5, "{seconds}");
        assert_eq!(expected.share, expected.time, "all cores are taken from the threads");
    }
}
