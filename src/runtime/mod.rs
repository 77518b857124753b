//! Runtime that runs paths: ONNX Runtime sessions, one per module, on one environment-wide thread
//! pool.
//!
//! This is the only room that uses `ort`. It does not know budgets, queues or wire formats. Start
//! at [`Runtime::start`], then [`Executor::run`].

mod activation;
mod activations;
mod dispatch;
mod environment;
mod error;
mod executor;
#[cfg(test)]
mod int8_tests;
mod ledger;
mod library;
mod needs;
mod process;
mod residents;
mod route;
mod routed;
mod rows;
mod session;
mod sessions;
mod whole;

pub use activation::{Activation, Routing, SideInputs};
pub use dispatch::dispatch_and_combine;
pub use environment::RuntimeConfig;
pub use error::RuntimeError;
pub use executor::{Executor, ModuleObserver, Room};
pub use library::find_library;
pub use process::Runtime;
pub use sessions::Residency;
pub use whole::{Elements, WholeModel};
