//! Serving families: admission, queues, the hand-over from async tasks to the inference thread.
//!
//! Knows no wire format. Start at [`Registry`], which holds the families, and
//! [`FamilyService::infer`].

mod correction;
mod error;
mod inputs;
mod observe;
mod prepare;
mod registry;
mod request;
mod service;
mod worker;

pub use error::{ErrorCode, ServeError};
pub use observe::{Observer, Outcome};
pub use registry::{FamilyState, Registry};
pub use request::{InferRequest, InferResponse, PlanSummary, Report};
pub use service::{FamilyService, LoadedFamily, ServiceConfig};
pub use worker::InferenceThread;
