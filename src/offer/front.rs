//! Choosing the plans that serving offers, from costs and qualities.

use std::collections::BTreeSet;

use super::{error::OfferError, profile::Profile, quality::QualityRecords};
use crate::{
    assembly::Family,
    family::{FamilyGraph, PlanId},
    plan::{
        CostedEdge, CostedGraph, EdgeCost, Grid, MAX_PLAN_ID_BYTES, ModuleId, Plan, PlanEntry,
        PlanTable, Quality, QualitySource, SearchOptions, Shape, pareto_front,
    },
};

/// Relative coarseness of the search for plans that are not measured; their qualities are
/// predictions anyway.
const EPSILON: f64 = 0.005;

/// Returns the family's graph with the cost of each module for requests of `batch` and `tokens`.
///
/// # Errors
///
/// Fails when the planner refuses the graph.
pub fn costed_graph(
    family: &Family,
    profile: &Profile,
    quality: &QualityRecords,
    Shape { batch, tokens }: Shape,
) -> Result<CostedGraph, OfferError> {
    let graph = &family.graph;
    let edges = graph
        .modules()
        .iter()
        .enumerate()
        .map(|(index, module)| {
            let id = ModuleId(index);
            let measured = profile.module(id);
            let cost = EdgeCost {
                latency_seconds: measured.map_or(0.0, |m| m.latency_seconds.at(batch, tokens)),
                weight_bytes: family.weight_bytes(id),
                activation_bytes: measured
                    .map_or(0, |m| to_bytes(m.activation_bytes.peak(batch, tokens))),
                loss: quality.loss(graph, id),
            };
            CostedEdge { from: module.from.0, to: module.to.0, cost }
        })
        .collect();
    let (input, output) = (graph.input().0, graph.output().0);
    Ok(CostedGraph::new(graph.spaces().len(), edges, input, output)?)
}

/// Returns the plans that may be worth offering. They are the measured plans, and the paths on the
/// front of some measured shape, where qualities are predicted.
///
/// # Errors
///
/// Fails when the planner refuses the graph.
pub fn candidate_plans(
    family: &Family,
    profile: &Profile,
    quality: &QualityRecords,
) -> Result<BTreeSet<Plan>, OfferError> {
    let mut plans: BTreeSet<Plan> =
        quality.plans.keys().filter_map(|id| PlanId::parse(&family.graph, id).ok()).collect();
    let options = SearchOptions { epsilon: EPSILON, ..SearchOptions::default() };
    for batch in [1, profile.max_batch()] {
        for &tokens in profile.token_knots().iter().rev().take(4) {
            let graph = costed_graph(family, profile, quality, Shape { batch, tokens })?;
            let front = pareto_front(&graph, &options)?;
            let edges = front.paths.into_iter().map(|path| path.edges.into_iter());
            let paths = edges.map(|edges| edges.map(ModuleId).collect::<Vec<_>>());
            plans.extend(paths.map(Plan::from));
        }
    }
    Ok(plans)
}

/// Returns the table that serving reads: the candidate plans with their costs at every shape. Plans
/// below the family's quality floor are left out.
///
/// # Errors
///
/// Fails when the planner refuses the graph or the margin.
pub fn plan_table(
    family: &Family,
    profile: &Profile,
    quality: &QualityRecords,
    margin: f64,
) -> Result<PlanTable, OfferError> {
    let mut entries = candidate_plans(family, profile, quality)?
        .into_iter()
        .map(|plan| entry(family, profile, quality, plan))
        .collect::<Result<Vec<_>, _>>()?;
    entries.retain(|entry| entry.quality.value >= family.manifest.quality.floor);
    // A plan with a longer id could not be asked for.
    entries.retain(|entry| entry.id.len() <= MAX_PLAN_ID_BYTES);
    Ok(PlanTable::new(entries, margin)?)
}

/// Returns the entry of `plan` with its costs at every shape and its quality. The quality is
/// predicted if the plan was not measured.
///
/// # Errors
///
/// Fails when grids do not match, which never happens with a profile of one run.
pub fn entry(
    family: &Family,
    profile: &Profile,
    quality: &QualityRecords,
    plan: Plan,
) -> Result<PlanEntry, OfferError> {
    let id = PlanId::of(&family.graph, &plan);
    let path = &plan.path;
    let measured = || path.iter().filter_map(|id| profile.module(*id));
    Ok(PlanEntry {
        latency_seconds: profile.latency_of(path.iter().copied())?,
        activation_bytes: Grid::max(measured().map(|module| &module.activation_bytes))?,
        weight_bytes: path.iter().map(|id| family.weight_bytes(*id)).sum(),
        quality: quality_of(&family.graph, quality, &id, path),
        id: id.into(),
        plan,
    })
}

fn quality_of(
    graph: &FamilyGraph,
    quality: &QualityRecords,
    id: &PlanId,
    path: &[ModuleId],
) -> Quality {
    match quality.plans.get(id.as_str()) {
        Some(value) => Quality { value: *value, source: QualitySource::Measured },
        None => Quality { value: quality.predict(graph, path), source: QualitySource::Predicted },
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "activation sizes are positive and far below 2^53 bytes"
)]
fn to_bytes(value: f64) -> u64 {
    value.max(0.0) as u64
}
