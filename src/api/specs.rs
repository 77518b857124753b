//! What decoding knows of a model.

use super::bounds::Bounds;
use crate::tensor::TensorSpec;

/// The tensors of a model.
#[derive(Debug)]
pub(super) struct Specs {
    /// What it takes.
    pub(super) inputs: Vec<TensorSpec>,
    /// What it returns.
    pub(super) outputs: Vec<TensorSpec>,
    /// How many classes it has names for.
    pub(super) num_labels: usize,
    /// How much a request may hold.
    pub(super) bounds: Bounds,
}
