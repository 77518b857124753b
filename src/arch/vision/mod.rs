//! Vision transformers.

pub(super) mod names;
pub(super) mod vit;
