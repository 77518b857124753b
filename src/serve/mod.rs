//! Serving of families: admission, queues, and the hand-over from async tasks to the inference
//! threads.
//!
//! This module knows no wire format. Start at [`Registry`], which holds the families, and
//! [`FamilyService::arrive`].

mod admission;
mod config;
mod error;
mod families;
mod generation;
mod idle;
mod observe;
mod planner;
mod request;
#[cfg(test)]
mod simulation_tests;
#[cfg(test)]
mod support_tests;
mod workers;

pub use config::ServiceConfig;
pub use error::{ErrorCode, ServeError};
pub use families::{
    BatchTally, Engine, FamilyState, LoadedFamily, Loader, Registry, Repository, Seen, Statistics,
    Tally, unix_time,
};
pub use generation::{
    AllowMask, AnswerGrammar, CallGrammar, CallableFunction, Constraint, Draw, Finish, Grammar,
    GrammarError, Grammars, History, LogProbability, Other, SampleError, Sampled, Sampler,
    Sampling, SamplingError, SamplingParameters, SequenceEvent, Timings,
};
pub use idle::{IdleTurn, IdleWork};
pub use observe::{Ending, Observer, Outcome, SequenceReport, StepChange};
pub use request::{
    Answer, DEFAULT_PRIORITY, Event, FamilyService, GenerateRequest, Generation, InferRequest,
    InferResponse, PlanSummary, Report, RoutedModule, Ticket,
};
pub use workers::InferenceThreads;
