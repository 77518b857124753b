//! A path on an input that may be larger than the largest batch.

use std::time::Duration;

use super::Observer;
use crate::{
    arch::ModelInput,
    family::ModuleId,
    runtime::{Executor, ModuleObserver, RuntimeError, SideInputs},
    tensor::{Tensor, TensorData},
};

/// A path and what goes through it.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) path: &'a [ModuleId],
    pub(super) input: ModelInput,
    /// The most sequences that run at once.
    pub(super) max_batch: usize,
}

/// Runs a path; `name` is its family's.
pub(super) fn run_chunks(
    executor: &Executor,
    name: &str,
    work: Work<'_>,
    observer: &dyn Observer,
) -> Result<Tensor, RuntimeError> {
    let family = executor.family().clone();
    let mut times = ModuleTimes { name, family: &family, observer };
    let mut outputs = Vec::new();
    for chunk in chunks(work.input, work.max_batch) {
        let sides = SideInputs::of_input(chunk)?;
        outputs.push(executor.run(work.path, &sides, &mut times)?);
    }
    Ok(concatenate(outputs))
}

/// Passes module times on under the modules' names.
struct ModuleTimes<'a> {
    name: &'a str,
    family: &'a crate::arch::Family,
    observer: &'a dyn Observer,
}

impl ModuleObserver for ModuleTimes<'_> {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        let module = &self.family.graph.module(module).name;
        tracing::debug!(module, seconds = time.as_secs_f64(), "ran");
        self.observer.module_ran(self.name, module, time);
    }
}

/// Splits `input` into chunks of at most `max_batch` texts or images, texts cut to the chunk's
/// longest.
fn chunks(input: ModelInput, max_batch: usize) -> Vec<ModelInput> {
    let batch = input.batch();
    if batch <= max_batch && matches!(input, ModelInput::Pixels(_)) {
        return vec![input];
    }
    (0..batch)
        .step_by(max_batch.max(1))
        .map(|start| input.rows(start..batch.min(start + max_batch.max(1))))
        .collect()
}

/// Puts outputs of equal width below one another.
fn concatenate(mut outputs: Vec<Tensor>) -> Tensor {
    if outputs.len() == 1 {
        return outputs.swap_remove(0);
    }
    let width = outputs.first().map_or(0, |output| output.shape()[1..].iter().product());
    let mut values = Vec::new();
    for output in &outputs {
        values.extend_from_slice(output.as_f32().unwrap_or_default());
    }
    let rows = values.len().checked_div(width).unwrap_or(0);
    Tensor::new(vec![rows, width], TensorData::F32(values))
        .expect("rows times width is the number of values")
}
