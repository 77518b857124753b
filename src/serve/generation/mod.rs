//! Generation: sequences that run step by step, together.
//!
//! A [`Generator`] belongs to a family. Requests put sequences into it, and an inference thread
//! runs its steps one after another while there are any. [`steps`] chooses what runs in a step.

mod constraint;
mod generator;
mod kept;
mod live;
mod sampling;
pub(crate) mod steps;
mod stream;

pub use constraint::{
    AnswerGrammar, CallGrammar, CallableFunction, Constraint, Grammar, GrammarError, Grammars,
    Other,
};
pub(crate) use generator::{Generator, Limits};
pub(crate) use kept::Sharing;
pub(crate) use live::NewSequence;
pub use sampling::{
    AllowMask, Draw, History, LogProbability, SampleError, Sampled, Sampler, Sampling,
    SamplingError, SamplingParameters,
};
pub use stream::{Finish, SequenceEvent, Timings};
