//! Runtime that runs paths: ONNX Runtime sessions, one per module, on one environment-wide thread
//! pool.
//!
//! This is the only room that uses `ort`. It does not know budgets, queues or wire formats. Start
//! at [`Runtime::start`], then [`Executor::run`].

mod activation;
#[cfg(test)]
mod blocks_tests;
mod cache;
mod environment;
mod error;
mod executor;
mod forward;
#[cfg(test)]
mod int8_tests;
mod library;
mod needs;
mod probe;
mod process;
mod residents;
mod routed;
mod rows;
mod scaling;
mod session;
#[cfg(test)]
pub(crate) mod support_tests;

pub use activation::{Activation, Routing, SideInputs};
pub use cache::{Sequence, StepBatch, StepRow, Tokens};
pub use environment::RuntimeConfig;
pub use error::RuntimeError;
pub use executor::{Executor, ModuleObserver, Room};
pub use library::find_library;
pub use probe::{Competition, Elements, Scratch, WholeModel, calibrate};
pub use process::Runtime;
pub use residents::Residency;
pub use routed::dispatch_and_combine;
