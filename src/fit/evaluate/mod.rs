//! Measuring the quality of plans.

mod recall;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::SystemTime,
};

use super::{FitError, Progress, data::dataset::Dataset};
use crate::{
    assembly::Family,
    family::{FamilyGraph, Metric, Module, ModuleId, ModuleKind, PlanId, SpaceId},
    input::ModelInput,
    offer::{Profile, QualityRecords, candidate_plans},
    plan::{Plan, Shape},
    pool::today,
    runtime::{Activation, Executor, SideInputs},
};
use recall::Neighbours;

/// Settings of an evaluation.
#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// Number of tokens after which texts are cut.
    pub max_tokens: usize,
    /// Maximum number of plans measured in one round.
    pub plans_per_round: usize,
    /// Maximum number of rounds after the first. Each measures the plans that the last predictions
    /// put on the front.
    pub max_rounds: usize,
    /// Command line, kept in the records.
    pub command: String,
}

/// Starting point of an evaluation.
#[derive(Debug)]
pub struct Evaluation<'a> {
    /// Costs of the modules, which decide the plans on the front.
    pub profile: &'a Profile,
    /// Qualities measured before.
    pub records: QualityRecords,
    /// Settings of the evaluation.
    pub options: &'a EvaluateOptions,
}

/// Maximum number of texts or images that run in one batch.
const BATCH: usize = 16;

/// Minimum number of texts or images for measuring a quality.
const MIN_EXAMPLES: usize = 20;

/// Measures plans on `data` until all plans on the front are measured or the rounds end.
///
/// The first round measures every module by itself, in the path that is otherwise most like the
/// reference. `save` is called after every round, so that an interrupted evaluation can resume.
///
/// # Errors
///
/// Fails when a plan cannot be run, `data` is too small, or saving fails.
pub fn evaluate(
    executor: &mut Executor,
    data: &Dataset,
    evaluation: Evaluation<'_>,
    progress: &dyn Progress,
    save: &mut dyn FnMut(&QualityRecords) -> Result<(), FitError>,
) -> Result<QualityRecords, FitError> {
    let Evaluation { profile, mut records, options } = evaluation;
    let family = executor.family().clone();
    let graph = &family.graph;
    check_enough(data)?;
    describe(&mut records, &family, data, options);
    let known = |id: &String, _: &mut f64| PlanId::parse(graph, id).is_ok();
    records.plans.retain(known);
    let reference = reference_plan(&family.graph, &family.manifest.reference)
        .ok_or_else(|| FitError::Family("the reference has no head".into()))?;
    let mut wanted = singles(graph);
    wanted.extend(uniform(graph));
    wanted.insert(reference.clone());
    for round in 0..=options.max_rounds {
        let mut due = not_measured(graph, &records, wanted);
        if round > 0 {
            let floor = family.manifest.quality.floor;
            due.retain(|plan| (-records.predicted_loss(graph, &plan.path)).exp() >= floor);
            due = spread(graph, &records, due, options.plans_per_round);
        }
        if due.is_empty() {
            records.fit_losses(graph);
            save(&records)?;
            if round == 0 {
                wanted = candidate_plans(&family, profile, &records)?;
                continue;
            }
            break;
        }
        progress.note(&format!("round {round}: {} plans", due.len()));
        due.insert(reference.clone());
        let outputs = run_all(executor, data, &due, options.max_tokens, progress)?;
        for (plan, quality) in qualities(&family, data, &reference, outputs)? {
            let quality = (quality * 1e4).round() / 1e4;
            records.plans.insert(PlanId::of(graph, &plan).into(), quality);
        }
        records.fit_losses(graph);
        save(&records)?;
        wanted = candidate_plans(&family, profile, &records)?;
    }
    Ok(records)
}

/// Checks that `data` is large enough to measure qualities.
///
/// # Errors
///
/// Fails when there are fewer than 20 texts or images.
pub fn check_enough(data: &Dataset) -> Result<(), FitError> {
    data.require("evaluation", MIN_EXAMPLES)
}

fn describe(
    records: &mut QualityRecords,
    family: &Family,
    data: &Dataset,
    options: &EvaluateOptions,
) {
    records.metric = family.manifest.quality.metric.name().into();
    records.data = data.name();
    records.num_examples = data.len();
    records.max_tokens = matches!(data, Dataset::Texts(_)).then_some(options.max_tokens);
    records.date = today(SystemTime::now());
    records.command.clone_from(&options.command);
}

fn not_measured(
    graph: &FamilyGraph,
    records: &QualityRecords,
    plans: BTreeSet<Plan>,
) -> BTreeSet<Plan> {
    let measured = |plan: &Plan| records.plans.contains_key(PlanId::of(graph, plan).as_str());
    plans.into_iter().filter(|plan| !measured(plan)).collect()
}

/// Measures the quality of each of `plans` on `data`.
///
/// # Errors
///
/// Fails when a plan id is wrong or a plan cannot be run.
pub fn measure_qualities(
    executor: &mut Executor,
    data: &Dataset,
    plans: &[&str],
    max_tokens: usize,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, f64>, FitError> {
    let family = executor.family().clone();
    let reference = reference_plan(&family.graph, &family.manifest.reference)
        .ok_or_else(|| FitError::Family("the reference has no head".into()))?;
    let plans = plans.iter().map(|plan| PlanId::parse(&family.graph, plan));
    let mut plans = plans.collect::<Result<BTreeSet<_>, _>>()?;
    plans.insert(reference.clone());
    let outputs = run_all(executor, data, &plans, max_tokens, progress)?;
    let judged = qualities(&family, data, &reference, outputs)?.into_iter();
    Ok(judged.map(|(plan, q)| (PlanId::of(&family.graph, &plan).into(), q)).collect())
}

/// Computes each plan's quality from its outputs, against labels or the reference's outputs.
fn qualities(
    family: &Family,
    data: &Dataset,
    reference: &Plan,
    mut outputs: HashMap<Plan, Vec<f32>>,
) -> Result<Vec<(Plan, f64)>, FitError> {
    if family.manifest.quality.metric == Metric::Accuracy {
        let labels =
            data.labels().ok_or_else(|| FitError::Family("accuracy needs labelled data".into()))?;
        let judged = outputs.into_iter().map(|(plan, classes)| (plan, accuracy(&classes, labels)));
        return Ok(judged.collect());
    }
    let truth = outputs
        .remove(reference)
        .ok_or_else(|| FitError::Family("the reference did not run".into()))?;
    let neighbours = Neighbours::new(truth, family.manifest.output.width);
    let judged = outputs.into_iter().map(|(plan, found)| (plan, neighbours.recall(&found)));
    Ok(judged.chain([(reference.clone(), 1.0)]).collect())
}

/// Returns the fraction of `classes` (whole numbers) that equal their label.
#[expect(clippy::cast_precision_loss, reason = "classes and images are far below 2^24")]
fn accuracy(classes: &[f32], labels: &[usize]) -> f64 {
    let is_right = |(class, label): &(&f32, &usize)| (**class - **label as f32).abs() < 0.5;
    let right = classes.iter().zip(labels).filter(is_right).count();
    right as f64 / labels.len().max(1) as f64
}

/// Returns the position of the largest score in each row, as a float.
#[expect(clippy::cast_precision_loss, reason = "classes are far below 2^24")]
fn best_classes(scores: &[f32], width: usize) -> Vec<f32> {
    let best = |row: &[f32]| {
        let largest = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        largest.map_or(0.0, |(index, _)| index as f32)
    };
    scores.chunks(width).map(best).collect()
}

/// Returns the plan of the reference's own path to its own head, without variants, bridges and
/// stitches.
fn reference_plan(graph: &FamilyGraph, reference: &str) -> Option<Plan> {
    let head = graph.reference_head(reference)?;
    path_through(graph, head, |module| {
        let leads_elsewhere = matches!(module.kind, ModuleKind::Bridge | ModuleKind::Stitch);
        i64::from(module.variant.is_some() || leads_elsewhere)
    })
    .map(Plan::from)
}

/// Returns a path through each module that departs from its anchor. The rest of the path departs
/// least. It takes the int8 form of blocks that have one, for speed.
fn singles(graph: &FamilyGraph) -> BTreeSet<Plan> {
    use ModuleKind::{Attention, Block, Mlp};
    let is_plain = |module: &Module| {
        matches!(module.kind, Block | Attention | Mlp) && module.variant.is_none()
    };
    let modules = graph.modules().iter().enumerate();
    modules
        .filter(|(_, module)| !is_plain(module))
        .filter_map(|(index, _)| path_through(graph, ModuleId(index), departure))
        .map(Plan::from)
        .collect()
}

/// Returns paths that take a variant wherever it exists, for each variant and each exit or head.
/// They avoid bridges and stitches.
fn uniform(graph: &FamilyGraph) -> BTreeSet<Plan> {
    let modules = graph.modules().iter().filter(|module| !module.is_skip());
    let variants: BTreeSet<&str> = modules.filter_map(|module| module.variant.as_deref()).collect();
    let exits = graph.modules().iter().enumerate().filter(|(_, m)| m.to == graph.output());
    let exits: Vec<usize> = exits.map(|(index, _)| index).collect();
    let mut plans = BTreeSet::new();
    for variant in variants {
        let length = |module: &Module| match module.kind {
            ModuleKind::Stitch | ModuleKind::Bridge => 1_000,
            _ => i64::from(module.variant.as_deref() != Some(variant)),
        };
        for exit in &exits {
            let end = graph.modules()[*exit].from;
            if let Some(mut path) = shortest(graph, graph.input(), end, length) {
                path.push(ModuleId(*exit));
                plans.insert(Plan::from(path));
            }
        }
    }
    plans
}

/// Finds the path through module `id` with the least sum of `departure`.
fn path_through(
    graph: &FamilyGraph,
    id: ModuleId,
    departure: fn(&Module) -> i64,
) -> Option<Vec<ModuleId>> {
    let module = graph.module(id);
    let mut path = shortest(graph, graph.input(), module.from, departure)?;
    path.push(id);
    path.extend(shortest(graph, module.to, graph.output(), departure)?);
    Some(path)
}

/// Finds the path between two spaces with the least sum of `length`.
///
/// The search is Bellman-Ford: lengths may be negative, and the graph has no cycle.
fn shortest(
    graph: &FamilyGraph,
    from: SpaceId,
    to: SpaceId,
    length: impl Fn(&Module) -> i64,
) -> Option<Vec<ModuleId>> {
    let mut best: Vec<Option<(i64, Option<ModuleId>)>> = vec![None; graph.spaces().len()];
    best[from.0] = Some((0, None));
    for _ in 0..graph.spaces().len() {
        for (index, module) in graph.modules().iter().enumerate() {
            let Some((cost, _)) = best[module.from.0] else { continue };
            let cost = cost + length(module);
            if best[module.to.0].is_none_or(|(known, _)| cost < known) {
                best[module.to.0] = Some((cost, Some(ModuleId(index))));
            }
        }
    }
    let mut path = Vec::new();
    let mut end = to;
    while end != from {
        let id = best[end.0]?.1?;
        path.push(id);
        end = graph.module(id).from;
    }
    path.reverse();
    Some(path)
}

/// Returns the distance of a module from its anchor. Blocks have a negative one, and int8 blocks
/// the least, so that paths prefer them.
fn departure(module: &Module) -> i64 {
    use ModuleKind::{Bridge, Exit, Head, Stem, Stitch};
    let is_int8 = module.is_int8();
    match (module.kind, &module.variant) {
        (Stem | Head, _) => 0,
        (Bridge | Stitch | Exit, _) if is_int8 => 1_000,
        (Bridge | Stitch | Exit, _) => 1_001,
        (_, None) => -1,
        (_, Some(_)) if is_int8 => -2,
        (_, Some(_)) => 1_000,
    }
}

/// Takes at most `count` of `plans`, evenly spread from the best to the worst predicted quality.
fn spread(
    graph: &FamilyGraph,
    records: &QualityRecords,
    plans: BTreeSet<Plan>,
    count: usize,
) -> BTreeSet<Plan> {
    let mut ranked: Vec<_> =
        plans.into_iter().map(|plan| (records.predicted_loss(graph, &plan.path), plan)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let every = ranked.len().div_ceil(count.max(1)).max(1);
    ranked.into_iter().step_by(every).map(|(_, plan)| plan).collect()
}

/// Runs all `plans` over the data. Returns the outputs of each plan, or its classes of the largest
/// score. Each batch follows the paths as a tree, so that a common start runs once.
fn run_all(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Space, SpaceId, SpaceKind, SpaceSpec};

    #[test]
    fn the_reference_runs_every_block_where_a_bridge_of_no_variant_is_shorter() {
        let hidden = |depth| SpaceKind::Hidden { anchor: 0, depth, position: 0, stitched: false };
        let kinds = [SpaceKind::Input, SpaceKind::Output, hidden(0), hidden(1), hidden(2)];
        let spaces = kinds.iter().zip(["in", "out", "a.0", "a.1", "a.2"]);
        let space = |(kind, name): (&SpaceKind, &str)| {
            let (name, kind) = (name.into(), *kind);
            Space { name, kind, spec: SpaceSpec::default() }
        };
        let spaces = spaces.map(space);
        let modules = [
            (ModuleKind::Bridge, 2, 4),
            (ModuleKind::Stem, 0, 2),
            (ModuleKind::Block, 2, 3),
            (ModuleKind::Block, 3, 4),
            (ModuleKind::Head, 4, 1),
        ];
        let modules = modules.iter().enumerate().map(|(index, (kind, from, to))| Module {
            name: format!("m{index}"),
            from: SpaceId(*from),
            to: SpaceId(*to),
            kind: *kind,
            variant: None,
        });
        let graph = FamilyGraph::new(vec!["a".into()], spaces.collect(), modules.collect());
        let plan = reference_plan(&graph.expect("a graph"), "a");
        assert_eq!(plan, Some([1, 2, 3, 4].map(ModuleId).to_vec().into()));
    }
}
