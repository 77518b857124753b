//! Requests that wait: admission, order and batches.

pub(super) mod batch;
pub(super) mod job;
pub(super) mod queue;
mod strictness;
pub(super) mod waiting;
