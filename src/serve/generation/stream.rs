//! Events of a generated sequence, and the channel on which they come.

use std::time::Duration;

use super::sampling::Sampled;
use crate::serve::error::ServeError;

/// Event of a sequence.
#[derive(Debug)]
pub enum SequenceEvent {
    /// The next token.
    Token(Sampled),
    /// The sequence has ended.
    Ended(Finish, Timings),
    /// The sequence failed; no event follows.
    Failed(ServeError),
}

/// Reason why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string was found.
    Stop,
    /// It has as many tokens as were asked for, or as the context holds.
    Length,
}

/// Times and counts of a sequence, which answers tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Number of tokens of the prompt that were in a cache already.
    pub num_cached: usize,
    /// Number of tokens of the prompt that ran.
    pub num_prompt: usize,
    /// Time from the arrival to the first step.
    pub queue: Duration,
    /// Time from the first step to the first token.
    pub prefill: Duration,
    /// Number of generated tokens.
    pub num_generated: usize,
    /// Time from the first token to the last.
    pub decode: Duration,
}
