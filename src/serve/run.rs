//! A path on an input that may be larger than the largest batch.

use std::time::Duration;

use super::{
    Observer,
    outputs::{Outputs, Places, concatenate},
    routed::RoutedBatch,
};
use crate::{
    arch::ModelInput,
    family::ModuleId,
    runtime::{Executor, ModuleObserver, Routing, RuntimeError, SideInputs},
};

/// A path and what goes through it.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) path: &'a [ModuleId],
    pub(super) input: ModelInput,
    /// The most sequences that run at once.
    pub(super) max_batch: usize,
}

/// What a path gave.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outputs: Outputs,
    /// Which places of its sequences are tokens.
    pub(super) places: Option<Places>,
    /// The ways that tokens took.
    pub(super) routed: RoutedBatch,
    /// How long each module took, in all chunks.
    pub(super) times: Vec<(ModuleId, Duration)>,
}

/// Runs a path; `name` is its family's.
pub(super) fn run_chunks(
    executor: &Executor,
    name: &str,
    work: Work<'_>,
    observer: &dyn Observer,
) -> Result<Ran, RuntimeError> {
    let family = executor.family().clone();
    let routed = RoutedBatch::default();
    let mut heard = Heard { name, family: &family, observer, routed, times: Vec::new() };
    let mut outputs = Vec::new();
    let places = Places::of(&work.input);
    for chunk in chunks(work.input, work.max_batch) {
        let sides = SideInputs::of_input(chunk)?;
        outputs.push(executor.run(work.path, &sides, &mut heard)?);
    }
    let Heard { routed, times, .. } = heard;
    Ok(Ran { outputs: concatenate(outputs), places, routed, times })
}

/// Passes on under the modules' names what is heard of them.
struct Heard<'a> {
    name: &'a str,
    family: &'a crate::arch::Family,
    observer: &'a dyn Observer,
    routed: RoutedBatch,
    times: Vec<(ModuleId, Duration)>,
}

impl ModuleObserver for Heard<'_> {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        self.times.push((module, time));
        let module = &self.family.graph.module(module).name;
        tracing::debug!(module, seconds = time.as_secs_f64(), "ran");
        self.observer.module_ran(self.name, module, time);
    }

    fn routed(&mut self, module: ModuleId, routing: &Routing) {
        let module = &self.family.graph.module(module).name;
        self.observer.tokens_routed(self.name, module, routing);
        self.routed.add(module, routing);
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
