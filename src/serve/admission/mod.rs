//! Requests that wait: admission, order and batches.

pub(super) mod batch;
pub(super) mod job;
pub(super) mod queue;
pub(super) mod scheduler;
mod strictness;
pub(super) mod waiting;
