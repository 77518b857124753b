//! The first run of a family's likely plans, before it is told to be ready: a session costs several
//! times as much when it is made, and again when it runs for the first time.

use std::time::{Duration, Instant};

use super::LoadedFamily;
use crate::{
    arch::{Encoding, ModelInput, Pixels},
    family::{Manifest, ModuleId},
    plan::PlanEntry,
    runtime::{Executor, RuntimeError, SideInputs},
};

/// Longest time that a family's plans are run for before it is ready.
const LONGEST: Duration = Duration::from_secs(2);

/// Longest text that they are run on, in tokens.
const MAX_TOKENS: usize = 64;

/// Loads and runs the plans of every front once: the cheapest and the best first, so that where
/// time or memory ends both extremes have run.
pub(super) fn warm_up(executor: &Executor, loaded: &LoadedFamily) {
    let start = Instant::now();
    for entry in likely(loaded) {
        let path: Vec<ModuleId> = entry.modules.iter().copied().map(ModuleId).collect();
        match run(executor, loaded, &path) {
            Ok(true) if start.elapsed() < LONGEST => {}
            Ok(_) => return,
            Err(error) => tracing::warn!(plan = entry.id, %error, "a plan cannot be run ahead"),
        }
    }
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

/// Runs a plan on an input without meaning; returns whether there was room for all of its modules.
fn run(
    executor: &Executor,
    loaded: &LoadedFamily,
    path: &[ModuleId],
) -> Result<bool, RuntimeError> {
    for module in path {
        if !executor.load_ahead(*module)? {
            return Ok(false);
        }
    }
    let sides = SideInputs::of_input(blank(&loaded.family.manifest))?;
    executor.run(path, &sides, &mut ()).map(|_| true)
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
