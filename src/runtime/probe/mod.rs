//! Measuring networks: their activations, and whole models.

pub(super) mod activations;
mod calibration;
mod competition;
mod scratch;
mod whole;

pub use calibration::calibrate;
pub use competition::Competition;
pub use scratch::Scratch;
pub use whole::{Elements, WholeModel};
