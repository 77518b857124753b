//! Serving of families: admission, queues, and the hand-over from async tasks to the inference
//! threads.
//!
//! This module knows no wire format. Start at [`Registry`], which holds the families, and
//! [`FamilyService::infer`].

mod batch;
mod config;
mod correction;
mod crew;
mod engine;
mod error;
mod follow;
mod foresee;
mod inputs;
mod job;
mod learned;
mod least;
mod loaded;
mod observe;
mod outputs;
mod planner;
mod prepare;
mod pulse;
mod queue;
mod registry;
mod repository;
mod request;
mod routed;
mod run;
mod service;
mod statistics;
mod strictness;
mod waiting;
mod warm;
mod worker;
mod yielding;

pub use config::ServiceConfig;
pub use engine::Engine;
pub use error::{ErrorCode, ServeError};
pub use loaded::LoadedFamily;
pub use observe::{Observer, Outcome};
pub use registry::{FamilyState, Registry};
pub use repository::{Loader, Repository, Seen};
pub use request::{DEFAULT_PRIORITY, InferRequest, InferResponse, PlanSummary, Report};
pub use routed::RoutedModule;
pub use service::FamilyService;
pub use statistics::{BatchTally, Statistics, Tally};
pub use worker::InferenceThreads;
