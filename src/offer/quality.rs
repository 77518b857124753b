//! Measured plan qualities, and the model that predicts the others.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    family::{FamilyGraph, Metric, ModuleId, ModuleKind, PlanId, SpaceId, SpaceKind},
    pool::{PoolError, parse_json},
    tensor::{FileKind, read_text},
};

/// Least quality whose logarithm is taken.
const FLOOR: f64 = 1e-3;

/// Loss of an unknown module; it means a quality of about a third.
const UNKNOWN_LOSS: f64 = 1.0;

/// Share of texts that a plan treats right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The share, from 0 to 1.
    pub share: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
}

/// Figures of a plan on a corpus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// Quality by the family's metric.
    pub quality: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// Mean rank correlation (Spearman) of each text's similarities to the others with those that
    /// the reference finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_correlation: Option<f64>,
    /// Share of texts whose label most of their ten nearest texts have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Share>,
    /// Share of questions whose own answer is the nearest of all answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Share>,
}

/// Figures of plans on a corpus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusRecord {
    /// Number of texts or images.
    pub num_examples: usize,
    /// SHA-256 of the texts or images.
    pub sha256: String,
    /// Quality of an answer that does not depend on the request: the mean of the reference's
    /// vectors, or the commonest class.
    pub constant: f64,
    /// Figures of each measured plan by its id.
    pub plans: BTreeMap<String, Judgement>,
}

/// Content of `quality.json`: the qualities of measured plans, and the loss of each module by
/// itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityRecords {
    /// Name of the metric.
    pub metric: String,
    /// Name of the data on which qualities were measured.
    pub data: String,
    /// Number of texts or images; it was called `num_texts` before.
    #[serde(alias = "num_texts")]
    pub num_examples: usize,
    /// Number of tokens after which texts were cut; `None` for images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Date of the evaluation in UTC, `YYYY-MM-DD`.
    pub date: String,
    /// Command line of the evaluation.
    pub command: String,
    /// Measured qualities by plan id; on several corpora, that on the worst of them.
    pub plans: BTreeMap<String, f64>,
    /// Measurements on each corpus, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub corpora: BTreeMap<String, CorpusRecord>,
    /// Additive loss, −ln(quality), of each module by its name. Only modules of measured plans have
    /// an entry.
    pub losses: BTreeMap<String, f64>,
    /// Root mean square error of predicted qualities; each plan is predicted without its own
    /// measurement.
    pub prediction_error: f64,
}

impl Judgement {
    /// Rounds all figures to four digits.
    #[must_use]
    pub fn rounded(self) -> Self {
        let share =
            |own: Share| Share { share: rounded(own.share), interval: own.interval.map(rounded) };
        Self {
            quality: rounded(self.quality),
            interval: self.interval.map(rounded),
            rank_correlation: self.rank_correlation.map(rounded),
            labels: self.labels.map(share),
            answers: self.answers.map(share),
        }
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1e4).round() / 1e4
}

impl QualityRecords {
    /// Reads the file, or returns empty records if it is missing.
    ///
    /// # Errors
    ///
    /// Fails when the file is there but does not parse.
    pub fn read(path: &Path) -> Result<Self, PoolError> {
        let text = match read_text(path, FileKind::Records) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(reason) => {
                return Err(PoolError::File { path: path.to_owned(), reason });
            }
        };
        parse_json(path, &text)
    }

    /// Notes what was measured of the plan `id` on each corpus, in the corpora's order.
    pub fn note(&mut self, id: &str, judged: Vec<(String, Judgement)>) {
        let worst = judged.iter().map(|(_, own)| own.quality).fold(f64::INFINITY, f64::min);
        self.plans.insert(id.to_owned(), rounded(worst));
        for (corpus, own) in judged {
            let record = self.corpora.entry(corpus).or_default();
            record.plans.insert(id.to_owned(), own.rounded());
        }
    }

    /// Notes the quality of a constant answer on a corpus.
    pub fn note_constant(&mut self, corpus: String, quality: f64) {
        self.corpora.entry(corpus).or_default().constant = rounded(quality);
    }

    /// Forgets all plans but those for which `is_kept` holds.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.plans.retain(|id, _| is_kept(id));
        for record in self.corpora.values_mut() {
            record.plans.retain(|id, _| is_kept(id));
        }
    }

    /// Returns the predicted loss of a module. It is fitted if the module was part of a measured
    /// plan. Otherwise it is 0 for a plain part of the reference, and large for any other module.
    pub fn loss(&self, graph: &FamilyGraph, id: ModuleId) -> f64 {
        let module = graph.module(id);
        let known = self.losses.get(&module.name).copied();
        known.unwrap_or_else(|| if is_reference(graph, id) { 0.0 } else { UNKNOWN_LOSS })
    }

    /// Returns the sum of the losses of the modules of `path`.
    pub fn predicted_loss(&self, graph: &FamilyGraph, path: &[ModuleId]) -> f64 {
        path.iter().map(|id| self.loss(graph, *id)).sum()
    }

    /// Returns the predicted quality of `path`, less the model's error.
    pub fn predict(&self, graph: &FamilyGraph, path: &[ModuleId]) -> f64 {
        let is_own_measure = self.metric != Metric::Accuracy.name();
        if is_own_measure && path.iter().all(|id| is_reference(graph, *id)) {
            return 1.0;
        }
        let loss = self.predicted_loss(graph, path);
        ((-loss).exp() - self.prediction_error).clamp(0.0, 1.0)
    }

    /// Fits the modules' losses to the measured plans, and computes the error of predicted
    /// qualities.
    ///
    /// Plans that the graph no longer has are left out.
    pub fn fit_losses(&mut self, graph: &FamilyGraph) {
        let plans: Vec<(Vec<ModuleId>, f64)> = self
            .plans
            .iter()
            .filter_map(|(id, quality)| Some((PlanId::parse(graph, id).ok()?.path, *quality)))
            .collect();
        let losses = losses_of(graph, &plans);
        self.prediction_error = leave_one_out_error(graph, &plans);
        let is_used =
            |index: &usize| plans.iter().any(|(path, _)| path.contains(&ModuleId(*index)));
        self.losses = (0..losses.len())
            .filter(is_used)
            .map(|index| (graph.modules()[index].name.clone(), rounded(losses[index])))
            .collect();
    }
}

/// Returns whether a module is a plain part of the reference.
fn is_reference(graph: &FamilyGraph, id: ModuleId) -> bool {
    use ModuleKind::{Attention, Block, Head, Mlp, Stem};
    let anchor = |space: SpaceId| match graph.spaces()[space.0].kind {
        SpaceKind::Hidden { anchor, .. } => Some(anchor),
        SpaceKind::Input | SpaceKind::Output => None,
    };
    let module = graph.module(id);
    module.variant.is_none()
        && matches!(module.kind, Stem | Block | Attention | Mlp | Head)
        && graph.reference().is_some()
        && anchor(module.to).or(anchor(module.from)) == graph.reference()
}

/// Returns the non-negative losses that explain the measured qualities best. The fit is least
/// squares in the logarithm by coordinate descent, with a small pull to zero.
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

/// Returns the root mean square error of plans, each fifth of which is predicted from the others.
/// With fewer than ten plans, it is 0.1.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn files_of_images_name_no_tokens_and_older_files_are_read() {
        let written = json!({ "metric": "accuracy", "data": "t10k", "num_examples": 3,
            "date": "2026-11-26", "command": "", "plans": {}, "losses": {},
            "prediction_error": 0.0 });
        let mut old = written.clone();
        let fields = old.as_object_mut().expect("an object");
        let count = fields.remove("num_examples").expect("there");
        fields.extend([("num_texts".to_owned(), count), ("max_tokens".to_owned(), json!(128))]);
        let read = |file: Value| serde_json::from_value::<QualityRecords>(file).expect("valid");
        assert_eq!((read(old.clone()).num_examples, read(old).max_tokens), (3, Some(128)));
        assert_eq!(read(written.clone()).max_tokens, None);
        assert_eq!(serde_json::to_value(read(written.clone())).expect("written"), written);
    }
}
