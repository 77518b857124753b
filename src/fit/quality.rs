//! Measured plan qualities, and the model that predicts those not measured.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    arch::PoolError,
    family::{FamilyGraph, Metric, ModuleId, ModuleKind, PlanId, SpaceId, SpaceKind},
    tensor::read_text,
};

/// The least quality that a logarithm is taken of.
const FLOOR: f64 = 1e-3;

/// The loss of a module of which nothing is known: a quality of about a third.
const UNKNOWN_LOSS: f64 = 1.0;

/// What `quality.json` holds: measured plans, and what each module loses by itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityRecords {
    /// The metric.
    pub metric: String,
    /// The texts that it was measured on.
    pub data: String,
    /// How many texts.
    pub num_texts: usize,
    /// The tokens after which texts were cut.
    pub max_tokens: usize,
    /// The day.
    pub date: String,
    /// The command.
    pub command: String,
    /// Measured qualities by plan.
    pub plans: BTreeMap<String, f64>,
    /// The additive loss, −ln(quality), of each module by its name; others lose nothing.
    pub losses: BTreeMap<String, f64>,
    /// The root mean square error of predicted qualities, each predicted without its own
    /// measurement.
    pub prediction_error: f64,
}

impl QualityRecords {
    /// Reads the file; empty records where there is none.
    ///
    /// # Errors
    ///
    /// Fails when the file is there but does not parse.
    pub fn read(path: &Path) -> Result<Self, PoolError> {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(PoolError::File { path: path.to_owned(), source });
            }
        };
        serde_json::from_str(&text)
            .map_err(|e| PoolError::Malformed { path: path.to_owned(), message: e.to_string() })
    }

    /// Returns the predicted loss of a module: fitted where it was part of a measured plan, none
    /// where it is a plain part of the reference, and a large one where nothing is known.
    pub fn loss(&self, graph: &FamilyGraph, id: ModuleId) -> f64 {
        let module = graph.module(id);
        let known = self.losses.get(&module.name).copied();
        known.unwrap_or_else(|| if is_reference(graph, id) { 0.0 } else { UNKNOWN_LOSS })
    }

    /// Returns the sum of the losses of the modules of `path`.
    pub fn predicted_loss(&self, graph: &FamilyGraph, path: &[ModuleId]) -> f64 {
        path.iter().map(|id| self.loss(graph, *id)).sum()
    }

    /// Returns the predicted quality of `path`, made careful by the model's error.
    pub fn predict(&self, graph: &FamilyGraph, path: &[ModuleId]) -> f64 {
        let is_own_measure = self.metric != Metric::Accuracy.name();
        if is_own_measure && path.iter().all(|id| is_reference(graph, *id)) {
            return 1.0;
        }
        let loss = self.predicted_loss(graph, path);
        ((-loss).exp() - self.prediction_error).clamp(0.0, 1.0)
    }

    /// Fits the modules' losses to the measured plans, and the error of predicting each plan.
    ///
    /// Plans that the graph no longer has are left out.
    pub fn fit_losses(&mut self, graph: &FamilyGraph) {
        let plans: Vec<(Vec<ModuleId>, f64)> = self
            .plans
            .iter()
            .filter_map(|(id, quality)| Some((PlanId::find_path(graph, id).ok()?, *quality)))
            .collect();
        let losses = losses_of(graph, &plans);
        self.prediction_error = leave_one_out_error(graph, &plans);
        let is_used =
            |index: &usize| plans.iter().any(|(path, _)| path.contains(&ModuleId(*index)));
        let rounded = |loss: f64| (loss * 1e4).round() / 1e4;
        self.losses = (0..losses.len())
            .filter(is_used)
            .map(|index| (graph.modules()[index].name.clone(), rounded(losses[index])))
            .collect();
    }
}

/// Tells whether a module is a plain part of the anchor that has a head of its own.
fn is_reference(graph: &FamilyGraph, id: ModuleId) -> bool {
    use ModuleKind::{Attention, Block, Head, Mlp, Stem};
    let anchor = |space: SpaceId| match graph.spaces()[space.0].kind {
        SpaceKind::Hidden { anchor, .. } => Some(anchor),
        SpaceKind::Input | SpaceKind::Output => None,
    };
    let module = graph.module(id);
    let reference = graph.modules().iter().find(|m| m.kind == Head).and_then(|m| anchor(m.from));
    module.variant.is_none()
        && matches!(module.kind, Stem | Block | Attention | Mlp | Head)
        && anchor(module.to).or(anchor(module.from)) == reference
}

/// Finds the non-negative losses that explain the measured qualities best: least squares in the
/// logarithm by coordinate descent, with a small pull to zero.
pub fn losses_of(graph: &FamilyGraph, plans: &[(Vec<ModuleId>, f64)]) -> Vec<f64> {
    let mut losses = vec![0.0; graph.modules().len()];
    let mut residuals: Vec<f64> = plans.iter().map(|plan| -plan.1.max(FLOOR).ln()).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); losses.len()];
    for (plan, (path, _)) in plans.iter().enumerate() {
        path.iter().for_each(|id| users[id.0].push(plan));
    }
    for _ in 0..200 {
        for (module, users) in users.iter().enumerate().filter(|(_, users)| !users.is_empty()) {
            let old = losses[module];
            let sum: f64 = users.iter().map(|plan| residuals[*plan] + old).sum();
            #[expect(clippy::cast_precision_loss, reason = "plans are few")]
            let new = (sum / (users.len() as f64 + 0.05)).max(0.0);
            users.iter().for_each(|plan| residuals[*plan] += old - new);
            losses[module] = new;
        }
    }
    losses
}

/// Predicts every fifth of the plans from the others and returns the root mean square error.
fn leave_one_out_error(graph: &FamilyGraph, plans: &[(Vec<ModuleId>, f64)]) -> f64 {
    const FOLDS: usize = 5;
    if plans.len() < 2 * FOLDS {
        return 0.1;
    }
    let mut squared = 0.0;
    for fold in 0..FOLDS {
        let others: Vec<_> = (0..plans.len())
            .filter(|index| index % FOLDS != fold)
            .map(|index| plans[index].clone())
            .collect();
        let losses = losses_of(graph, &others);
        for (path, quality) in plans.iter().skip(fold).step_by(FOLDS) {
            let predicted = (-path.iter().map(|id| losses[id.0]).sum::<f64>()).exp();
            squared += (predicted - quality).powi(2);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "plans are few")]
    let mean = squared / plans.len() as f64;
    mean.sqrt()
}
