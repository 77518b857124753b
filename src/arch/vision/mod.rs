//! Vision transformers.

pub(super) mod names;
mod timm;
pub(super) mod vit;
