//! Drawing of tokens from logits, as pure functions of logits, parameters, seed and position.
//!
//! Work is bounded by a few passes over the vocabulary: nothing sorts it. Start at [`Sampler`].

mod exponential;
mod filter;
mod history;
mod parameters;
mod random;
mod sampler;
mod top;

pub use self::{
    history::History,
    parameters::{Sampling, SamplingError, SamplingParameters},
    sampler::{AllowMask, Draw, LogProbability, SampleError, Sampled, Sampler},
};

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
