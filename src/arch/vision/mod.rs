//! Vision transformers.

pub(super) mod layout;
pub(super) mod vit;
