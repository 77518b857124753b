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
}

/// Counts of a prompt's tokens.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub(crate) struct PromptDetails {
    /// Number of tokens whose keys and values were in a cache already.
    cached_tokens: usize,
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
    pub(super) fn new(num_prompt: usize, timings: impl Iterator<Item = Timings>) -> Self {
        let mut counts = Counts { prompt_tokens: num_prompt, ..Counts::default() };
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
