//! Measuring the quality of plans.

mod paths;
mod recall;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::SystemTime,
};

use super::{FitError, Progress, data::dataset::Dataset};
use crate::{
    assembly::Family,
    family::{FamilyGraph, Metric, PlanId},
    offer::{Profile, QualityRecords, candidate_plans},
    plan::Plan,
    pool::today,
    runtime::Executor,
};
use paths::{reference_plan, singles, uniform};
use recall::Neighbours;
use run::run_all;

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
