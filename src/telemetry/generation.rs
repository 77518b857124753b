//! Metrics of generated sequences. Each means what the metric of the same kind of vLLM does.

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec, Registry};

use super::makers::{NameAndHelp, counters, gauges, histograms};
use crate::serve::{Ending, Finish, SequenceReport, StepChange, Timings};

/// Upper bounds of the buckets for times of a sequence, in seconds.
const SEQUENCE_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0];

/// Upper bounds of the buckets for times of a token, in seconds.
const TOKEN_BUCKETS: &[f64] =
    &[0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5];

/// Upper bounds of the buckets for numbers of tokens.
const COUNT_BUCKETS: &[f64] = &[
    1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32768.0, 131_072.0,
];

const FIRST_TOKEN: NameAndHelp = NameAndHelp::new(
    "tessera_generation_time_to_first_token_seconds",
    "Time from the arrival of a request to the first token of a sequence.",
);
const PER_TOKEN: NameAndHelp = NameAndHelp::new(
    "tessera_generation_time_per_output_token_seconds",
    "Mean time of a sequence's tokens after the first.",
);
const TOTAL: NameAndHelp = NameAndHelp::new(
    "tessera_generation_duration_seconds",
    "Time from the arrival of a request to the end of a sequence.",
);
const QUEUE: NameAndHelp = NameAndHelp::new(
    "tessera_generation_queue_duration_seconds",
    "Time from the arrival of a request to a sequence's first step.",
);
const PREFILL: NameAndHelp = NameAndHelp::new(
    "tessera_generation_prefill_duration_seconds",
    "Time from a sequence's first step to its first token.",
);
const DECODE: NameAndHelp = NameAndHelp::new(
    "tessera_generation_decode_duration_seconds",
    "Time from a sequence's first token to its last.",
);
const PROMPT: NameAndHelp = NameAndHelp::new(
    "tessera_generation_sequence_prompt_tokens",
    "Tokens of a sequence's prompt, those found in a cache included.",
);
const GENERATED: NameAndHelp = NameAndHelp::new(
    "tessera_generation_sequence_generated_tokens",
    "Generated tokens of a sequence.",
);
const PROMPT_TOKENS: NameAndHelp = NameAndHelp::new(
    "tessera_generation_prompt_tokens_total",
    "Tokens of the prompts of sequences that ended.",
);
const GENERATED_TOKENS: NameAndHelp = NameAndHelp::new(
    "tessera_generation_generated_tokens_total",
    "Generated tokens of sequences that ended.",
);
const PREFIX_QUERIES: NameAndHelp = NameAndHelp::new(
    "tessera_generation_prefix_cache_queried_tokens_total",
    "Tokens of prompts that were looked for among the caches of earlier prompts.",
);
const PREFIX_HITS: NameAndHelp = NameAndHelp::new(
    "tessera_generation_prefix_cache_hit_tokens_total",
    "Tokens of prompts that were found among the caches of earlier prompts.",
);
const PREEMPTED: NameAndHelp = NameAndHelp::new(
    "tessera_generation_preemptions_total",
    "How many times a sequence gave its cache up to others.",
);
const ENDED: NameAndHelp = NameAndHelp::new(
    "tessera_generation_sequences_total",
    "Sequences that ended, by reason; closed means a stop string, or that the client left.",
);
const RUNNING: NameAndHelp =
    NameAndHelp::new("tessera_generation_sequences_running", "Sequences that run.");
const WAITING: NameAndHelp =
    NameAndHelp::new("tessera_generation_sequences_waiting", "Sequences that wait to run.");
const CACHE: NameAndHelp = NameAndHelp::new(
    "tessera_generation_cache_bytes",
    "Bytes of caches of sequences and of earlier prompts.",
);

/// Metrics of generated sequences.
#[derive(Debug)]
pub(super) struct GenerationMetrics {
    first_token: HistogramVec,
    per_token: HistogramVec,
    total: HistogramVec,
    queue: HistogramVec,
    prefill: HistogramVec,
    decode: HistogramVec,
    prompt: HistogramVec,
    generated: HistogramVec,
    prompt_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    prefix_queries: IntCounterVec,
    prefix_hits: IntCounterVec,
    preempted: IntCounterVec,
    ended: IntCounterVec,
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    cache: IntGaugeVec,
}

impl GenerationMetrics {
    /// Creates the metrics and registers them in `registry`.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = &["family"];
        let times = |name| histograms(registry, name, labels, SEQUENCE_BUCKETS);
        let counts = |name| histograms(registry, name, labels, COUNT_BUCKETS);
        let counter = |name| counters(registry, name, labels);
        Ok(Self {
            first_token: times(FIRST_TOKEN)?,
            per_token: histograms(registry, PER_TOKEN, labels, TOKEN_BUCKETS)?,
            total: times(TOTAL)?,
            queue: times(QUEUE)?,
            prefill: times(PREFILL)?,
            decode: times(DECODE)?,
            prompt: counts(PROMPT)?,
            generated: counts(GENERATED)?,
            prompt_tokens: counter(PROMPT_TOKENS)?,
            generated_tokens: counter(GENERATED_TOKENS)?,
            prefix_queries: counter(PREFIX_QUERIES)?,
            prefix_hits: counter(PREFIX_HITS)?,
            preempted: counter(PREEMPTED)?,
            ended: counters(registry, ENDED, &["family", "reason"])?,
            running: gauges(registry, RUNNING, "family")?,
            waiting: gauges(registry, WAITING, "family")?,
            cache: gauges(registry, CACHE, "family")?,
        })
    }

    /// Counts a sequence that has ended.
    pub(super) fn ended(&self, family: &str, sequence: &SequenceReport) {
        let labels = &[family];
        let Timings { num_prompt, num_cached, num_generated, queue, prefill, decode } =
            sequence.timings;
        self.ended.with_label_values(&[family, reason(sequence.ending)]).inc();
        self.total.with_label_values(labels).observe(sequence.total.as_secs_f64());
        self.prompt.with_label_values(labels).observe(as_f64(num_prompt));
        self.generated.with_label_values(labels).observe(as_f64(num_generated));
        for (counter, count) in [
            (&self.prompt_tokens, num_prompt),
            (&self.generated_tokens, num_generated),
            (&self.prefix_queries, num_prompt),
            (&self.prefix_hits, num_cached),
        ] {
            counter.with_label_values(labels).inc_by(count as u64);
        }
        // A sequence that failed or was left before its first token has no such times.
        if let Some(time) = sequence.first_token {
            self.first_token.with_label_values(labels).observe(time.as_secs_f64());
            self.queue.with_label_values(labels).observe(queue.as_secs_f64());
            self.prefill.with_label_values(labels).observe(prefill.as_secs_f64());
            self.decode.with_label_values(labels).observe(decode.as_secs_f64());
        }
        if num_generated > 1 {
            let mean = decode.as_secs_f64() / as_f64(num_generated - 1);
            self.per_token.with_label_values(labels).observe(mean);
        }
    }

    /// Adds the change of a family's sequences by a step.
    pub(super) fn stepped(&self, family: &str, change: &StepChange) {
        let labels = &[family];
        self.running.with_label_values(labels).add(change.num_running);
        self.waiting.with_label_values(labels).add(change.num_waiting);
        self.cache.with_label_values(labels).add(change.cache_bytes);
        self.preempted.with_label_values(labels).inc_by(change.num_preempted);
    }
}

fn reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Finished(Finish::Stop) => "stop",
        Ending::Finished(Finish::Length) => "length",
        Ending::Closed => "closed",
        Ending::Failed => "error",
    }
}

fn as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
