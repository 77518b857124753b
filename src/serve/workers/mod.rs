//! Threads that run batches.

mod crew;
pub(super) mod idle;
pub(super) mod outputs;
mod run;
pub(super) mod worker;
pub(super) mod yielding;

pub use worker::InferenceThreads;
