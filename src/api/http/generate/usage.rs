//! Counts and times of an answer.

use schemars::JsonSchema;
use serde::Serialize;

use crate::serve::Timings;

/// Counts of tokens in OpenAI's form, and times in llama.cpp's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) counts: Counts,
    pub(super) times: Times,
}

/// Counts of tokens.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(crate) struct Counts {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

/// Counts of an answer's tokens.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(crate) struct CompletionDetails {
    /// Number of tokens of thoughts.
    reasoning_tokens: usize,
}

/// Counts of a prompt's tokens.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(crate) struct PromptDetails {
    /// Number of tokens whose keys and values were in a cache already.
    cached_tokens: usize,
}

/// Counts of tokens as the Responses API names them.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: CompletionDetails,
    total_tokens: usize,
}

/// Counts of an input's tokens.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct InputDetails {
    /// Number of tokens whose keys and values were in a cache already.
    cached_tokens: usize,
    /// Number of tokens that a client pays for being cached: none.
    cache_write_tokens: usize,
}

impl From<Counts> for ResponseUsage {
    fn from(counts: Counts) -> Self {
        let cached_tokens = counts.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: counts.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens, cache_write_tokens: 0 },
            output_tokens: counts.completion_tokens,
            output_tokens_details: counts.completion_tokens_details,
            total_tokens: counts.total_tokens,
        }
    }
}

/// Times of an answer, of its slowest sequence where there are several.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(crate) struct Times {
    /// Number of tokens of the prompt that ran, and of those that were in a cache.
    prompt_n: usize,
    cache_n: usize,
    queue_ms: f64,
    prompt_ms: f64,
    /// Number of generated tokens of all sequences.
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
}

impl Usage {
    /// Creates the counts and times of sequences with `timings` behind one prompt, of whose tokens
    /// `num_thought` are thoughts.
    pub(super) fn new(
        num_prompt: usize,
        num_thought: usize,
        timings: impl Iterator<Item = Timings>,
    ) -> Self {
        let mut counts = Counts { prompt_tokens: num_prompt, ..Counts::default() };
        counts.completion_tokens_details.reasoning_tokens = num_thought;
        let mut times = Times::default();
        for own in timings {
            counts.completion_tokens += own.num_generated;
            counts.prompt_tokens_details.cached_tokens = own.num_cached;
            times.cache_n = own.num_cached;
            times.queue_ms = times.queue_ms.max(own.queue.as_secs_f64() * 1e3);
            times.prompt_ms = times.prompt_ms.max(own.prefill.as_secs_f64() * 1e3);
            times.predicted_ms = times.predicted_ms.max(own.decode.as_secs_f64() * 1e3);
        }
        counts.total_tokens = num_prompt + counts.completion_tokens;
        times.prompt_n = num_prompt - times.cache_n;
        times.predicted_n = counts.completion_tokens;
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
        let count = times.predicted_n.max(1) as f64;
        times.predicted_per_token_ms = times.predicted_ms / count;
        if times.predicted_ms > 0.0 {
            times.predicted_per_second = count / times.predicted_ms * 1e3;
        }
        Self { counts, times }
    }
}
