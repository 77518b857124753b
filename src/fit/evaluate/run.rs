//! Running many plans over texts or images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::judge::best_class;
use crate::{
    family::{FamilyGraph, Metric, ModuleId},
    fit::{FitError, Progress, data::dataset::Dataset},
    input::ModelInput,
    plan::{Plan, Shape},
    runtime::{Activation, Executor, SideInputs},
};

/// Maximum number of texts or images that run in one batch.
const BATCH: usize = 16;

/// Runs all `plans` over the data. Returns the outputs of each plan, or its classes of the largest
/// score. Each batch follows the paths as a tree, so that a common start runs once.
pub(super) fn run_all(
    executor: &mut Executor,
    data: &Dataset,
    plans: &BTreeSet<Plan>,
    max_tokens: usize,
    progress: &dyn Progress,
) -> Result<HashMap<Plan, Vec<f32>>, FitError> {
    let family = executor.family().clone();
    let width = family.manifest.output.width;
    let is_classes = family.manifest.quality.metric == Metric::Accuracy;
    let kept = if is_classes { 1 } else { width };
    let new = || vec![0.0; data.len() * kept];
    let mut outputs: HashMap<_, _> = plans.iter().map(|plan| (plan.clone(), new())).collect();
    for (anchor, plans) in by_stem(&family.graph, plans) {
        let shape = Shape::new(BATCH, max_tokens);
        let rows = plans.iter().map(|plan| executor.rows_at_once(&plan.path, shape));
        let rows = rows.min().unwrap_or(BATCH);
        let batches = data.batches(&family, &anchor, rows, max_tokens)?;
        progress.phase(&format!("evaluate {anchor}"), batches.len() as u64);
        for positions in batches {
            let input = data.input(&family, &anchor, &positions, max_tokens)?;
            let mut tree = Tree::new(executor, input)?;
            for plan in &plans {
                let mut rows = tree.run(&plan.path)?;
                if is_classes {
                    rows = best_classes(&rows, width);
                }
                let Some(all) = outputs.get_mut(*plan) else { continue };
                for (row, position) in rows.chunks(kept).zip(&positions) {
                    all[position * kept..][..kept].copy_from_slice(row);
                }
            }
            progress.step();
        }
    }
    Ok(outputs)
}

/// Groups plans by the anchor whose tokens they read. A group stays sorted, so that paths with a
/// common start follow one another.
fn by_stem<'p>(graph: &FamilyGraph, plans: &'p BTreeSet<Plan>) -> BTreeMap<String, Vec<&'p Plan>> {
    let mut groups: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for plan in plans {
        let anchor = graph.stem_anchor(&plan.path).unwrap_or_default();
        groups.entry(anchor.into()).or_default().push(plan);
    }
    groups
}

/// Activations along the path run last; the next path reuses those of their common start.
struct Tree<'a> {
    executor: &'a mut Executor,
    sides: SideInputs,
    path: Vec<ModuleId>,
    states: Vec<Option<Activation>>,
}

impl<'a> Tree<'a> {
    fn new(executor: &'a mut Executor, input: ModelInput) -> Result<Self, FitError> {
        let sides = SideInputs::of_input(input)?;
        Ok(Self { executor, sides, path: Vec::new(), states: Vec::new() })
    }

    fn run(&mut self, path: &[ModuleId]) -> Result<Vec<f32>, FitError> {
        let common = self.path.iter().zip(path).take_while(|(a, b)| a == b).count();
        self.path.truncate(common);
        self.states.truncate(common);
        for id in &path[common..] {
            // The identity leaves no state of its own, so the last state before it is used.
            let state = self.states.iter().rev().find_map(Option::as_ref);
            let next = self.executor.advance(*id, state, &self.sides)?;
            self.path.push(*id);
            self.states.push(next);
        }
        let last = self.states.iter().rev().find_map(Option::as_ref);
        let output = last.ok_or_else(|| FitError::Family("a path computes nothing".into()))?;
        Ok(output.to_tensor()?.floats().to_vec())
    }
}

/// Returns the position of the largest score in each row, as a float.
#[expect(clippy::cast_precision_loss, reason = "classes are far below 2^24")]
fn best_classes(scores: &[f32], width: usize) -> Vec<f32> {
    scores.chunks(width).map(|row| best_class(row) as f32).collect()
}
