//! The first run of a family's likely plans, before it is told to be ready: a session costs several
//! times as much when it is made, and again when it runs for the first time. And what the machine
//! takes now may be more than when it was profiled; the first budgets are to be kept as well.

use std::time::{Duration, Instant};

use super::{LoadedFamily, Observer, learned::Run, planner::Planner, queue::Queue};
use crate::{
    arch::{Encoding, ModelInput, Pixels},
    family::{Manifest, ModuleId},
    plan::PlanEntry,
    runtime::{Executor, ModuleObserver, RuntimeError, SideInputs},
};

/// Longest time that a family's plans are run for before it is ready.
const LONGEST: Duration = Duration::from_secs(2);

/// Runs from which the machine's speed is learned, and the longest time for them.
const NUM_MEASURED: usize = 40;
const LONGEST_MEASURED: Duration = Duration::from_millis(500);

/// Longest text that they are run on, in tokens.
const MAX_TOKENS: usize = 64;

/// Loads and runs the plans of every front once: the cheapest and the best first, so that where
/// time or memory ends both extremes have run. Returns those that ran.
pub(super) fn warm_up(executor: &Executor, loaded: &LoadedFamily) -> Vec<Vec<ModuleId>> {
    let start = Instant::now();
    let mut ran = Vec::new();
    for entry in likely(loaded) {
        let path: Vec<ModuleId> = entry.modules.iter().copied().map(ModuleId).collect();
        match load_and_run(executor, loaded, &path) {
            Ok(true) => ran.push(path),
            Ok(false) => break,
            Err(error) => tracing::warn!(plan = entry.id, %error, "a plan cannot be run ahead"),
        }
        if start.elapsed() > LONGEST {
            break;
        }
    }
    ran
}

/// Runs the plans of `paths` again, so that `planner` knows how fast the machine is now.
pub(super) fn measure(
    executor: &Executor,
    paths: &[Vec<ModuleId>],
    planner: &Planner,
    (queue, observer): (&Queue, &dyn Observer),
) {
    let start = Instant::now();
    for path in paths.iter().cycle().take(NUM_MEASURED) {
        let (input, begun) = (blank(&planner.loaded.family.manifest), Instant::now());
        let shape = (input.batch(), input.tokens());
        let mut times = Times::default();
        let ran = run(executor, input, path, &mut times);
        if ran.is_err() || start.elapsed() > LONGEST_MEASURED {
            break;
        }
        let (whole, is_alone) = (begun.elapsed(), queue.was_quiet_since(begun));
        planner.learn(&Run { shape, times: &times.0, whole, is_alone }, observer);
    }
    planner.apply_learned();
}

/// Returns the plans of the fronts at the profiled lengths, the extremes first.
fn likely(loaded: &LoadedFamily) -> Vec<&PlanEntry> {
    let fronts = loaded.profile.token_knots().iter().map(|tokens| loaded.table.front(1, *tokens));
    let fronts: Vec<Vec<&PlanEntry>> = fronts.collect();
    let extremes = fronts.iter().flat_map(|front| front.first().into_iter().chain(front.last()));
    let mut seen = std::collections::HashSet::new();
    let all = extremes.chain(fronts.iter().flatten()).copied();
    all.filter(|entry| seen.insert(entry.id.as_str())).collect()
}

/// Loads a plan's modules and runs it once; returns whether there was room for all of them.
fn load_and_run(
    executor: &Executor,
    loaded: &LoadedFamily,
    path: &[ModuleId],
) -> Result<bool, RuntimeError> {
    for module in path {
        if !executor.load_ahead(*module)? {
            return Ok(false);
        }
    }
    run(executor, blank(&loaded.family.manifest), path, &mut ()).map(|()| true)
}

fn run(
    executor: &Executor,
    input: ModelInput,
    path: &[ModuleId],
    observer: &mut impl ModuleObserver,
) -> Result<(), RuntimeError> {
    executor.run(path, &SideInputs::of_input(input)?, observer).map(drop)
}

/// How long each module took.
#[derive(Debug, Default)]
struct Times(Vec<(ModuleId, Duration)>);

impl ModuleObserver for Times {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        self.0.push((module, time));
    }
}

/// Returns one text of equal tokens, or one image of zeros.
fn blank(manifest: &Manifest) -> ModelInput {
    if let Some(image) = &manifest.image {
        let shape = [image.channels, image.height, image.width];
        return ModelInput::Pixels(Pixels { shape, values: vec![0.0; shape.iter().product()] });
    }
    let tokens = manifest.limits.max_tokens.clamp(1, MAX_TOKENS);
    let (input_ids, attention_mask) = (vec![0; tokens], vec![1; tokens]);
    ModelInput::Tokens(Encoding { batch: 1, tokens, input_ids, attention_mask })
}
