//! Threads that run batches.

mod crew;
pub(super) mod outputs;
pub(super) mod routed;
mod run;
pub(super) mod worker;
pub(super) mod yielding;

pub use routed::RoutedModule;
pub use worker::InferenceThreads;
