//! Families that are served: loading, reloading, unloading.

mod engine;
pub(super) mod loaded;
mod registry;
mod repository;
pub(super) mod statistics;
mod warm;

pub use engine::Engine;
pub use loaded::LoadedFamily;
pub use registry::{FamilyState, Registry};
pub use repository::{Loader, Repository, Seen};
pub use statistics::{BatchTally, Statistics, Tally, unix_time};
