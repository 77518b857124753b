//! Tensors and bounds of a model, by which requests are decoded.

use super::bounds::Bounds;
use crate::tensor::TensorSpec;

/// Tensors of a model, and its bounds.
#[derive(Debug)]
pub(crate) struct Specs {
    /// Inputs of the model.
    pub(crate) inputs: Vec<TensorSpec>,
    /// Outputs of the model.
    pub(crate) outputs: Vec<TensorSpec>,
    /// Number of classes with a label.
    pub(crate) num_labels: usize,
    /// Bounds on the content of a request.
    pub(crate) bounds: Bounds,
}
