//! Descriptions of models in Triton's terms.

pub(super) mod describe;
pub(super) mod messages;
