//! Measuring networks: their activations, and whole models.

pub(super) mod activations;
mod whole;

pub use whole::{Elements, WholeModel};
