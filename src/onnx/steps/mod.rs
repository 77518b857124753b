//! Graphs of steps: their hidden states are rows, `[tokens, width]`.

mod residual;
mod rows;

use super::proto::ModelProto;

/// Prepares `model`, a graph over rows, for a step: hidden states get a first axis of 1, and
/// residual sums are joined with the norms that read them.
pub(crate) fn finish_step(model: &mut ModelProto) {
    residual::join_residuals(model);
    rows::batch_rows(model);
}
