//! Measuring networks: their activations, and whole models.

pub(super) mod activations;
mod scratch;
mod whole;

pub use scratch::Scratch;
pub use whole::{Elements, WholeModel};
