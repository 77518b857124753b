//! Descriptions of models and text generation in Triton's terms.

pub(super) mod describe;
pub(super) mod generate;
pub(super) mod messages;
