//! Measuring the quality of plans.

mod judge;
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
    offer::{CorpusRecord, Judgement, Profile, QualityRecords, candidate_plans},
    plan::Plan,
    pool::{FitRecords, today},
    runtime::Executor,
};
use judge::{ScoreJudge, TextJudge, by_labels, commonest};
use paths::{begun_in_int8, reference_plan, singles, uniform};
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

/// Most scores of plans that are held at once.
const MAX_SCORES: usize = 1 << 26;

/// Minimum number of texts or images for measuring a quality.
const MIN_EXAMPLES: usize = 20;

/// Measures plans on each of `corpora` until all plans on the front are measured or the rounds end.
/// A plan's quality is that on the corpus where it is worst.
///
/// The first round measures every module by itself, in the path that is otherwise most like the
/// reference. `save` is called after every round, so that an interrupted evaluation can resume.
///
/// # Errors
///
/// Fails when a plan cannot be run, a corpus is too small or was fitted on, or saving fails. Fails
/// when the records are of other corpora.
pub fn evaluate(
    executor: &mut Executor,
    corpora: &[Dataset],
    evaluation: Evaluation<'_>,
    progress: &dyn Progress,
    save: &mut dyn FnMut(&QualityRecords) -> Result<(), FitError>,
) -> Result<QualityRecords, FitError> {
    let Evaluation { profile, mut records, options } = evaluation;
    let family = executor.family().clone();
    let graph = &family.graph;
    check_corpora(corpora, &FitRecords::read(&family.folder)?)?;
    describe(&mut records, &family, corpora, options)?;
    records.retain(|id| PlanId::parse(graph, id).is_ok());
    let reference = reference_of(&family)?;
    let mut wanted = singles(graph);
    wanted.extend(uniform(graph));
    wanted.extend(begun_in_int8(graph, &reference));
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
        let task = Task { plans: &due, reference: &reference, max_tokens: options.max_tokens };
        task.judge(executor, corpora, progress)?.note(&mut records, graph);
        records.fit_losses(graph);
        save(&records)?;
        wanted = candidate_plans(&family, profile, &records)?;
    }
    Ok(records)
}

/// Checks that each of `corpora` is large enough to measure qualities, has a name of its own, and
/// has no text on which a map or experts in `fits` were fitted.
///
/// # Errors
///
/// Fails when there are fewer than 20 texts or images, and on a name or a text that is not new.
pub fn check_corpora(corpora: &[Dataset], fits: &FitRecords) -> Result<(), FitError> {
    let mut names = BTreeSet::new();
    for data in corpora {
        data.require("evaluation", MIN_EXAMPLES)?;
        if !names.insert(data.name()) {
            let message = format!("two files are called {}, by which they are known", data.name());
            return Err(FitError::Family(message));
        }
        data.require_unseen(fits)?;
    }
    Ok(())
}

/// Says in `records` what is measured.
///
/// # Errors
///
/// Fails when they hold what was measured of other texts or images, which cannot be compared.
fn describe(
    records: &mut QualityRecords,
    family: &Family,
    corpora: &[Dataset],
    options: &EvaluateOptions,
) -> Result<(), FitError> {
    let new = |data: &Dataset| CorpusRecord {
        num_examples: data.len(),
        sha256: data.sha256(),
        constant: 0.0,
        plans: BTreeMap::new(),
    };
    let mut wanted: BTreeMap<String, CorpusRecord> =
        corpora.iter().map(|data| (data.name(), new(data))).collect();
    let is_same = |(name, own): (&String, &CorpusRecord)| {
        wanted.get(name).is_some_and(|wanted| wanted.sha256 == own.sha256)
    };
    let is_known = records.corpora.len() == wanted.len() && records.corpora.iter().all(is_same);
    if !records.plans.is_empty() && !is_known {
        let message = "the qualities that are there were measured on other data; `--again` \
                       measures them anew";
        return Err(FitError::Family(message.to_owned()));
    }
    for (name, own) in std::mem::take(&mut records.corpora) {
        wanted.insert(name, own);
    }
    records.corpora = wanted;
    records.metric = family.manifest.quality.metric.name().into();
    records.data = corpora.iter().map(Dataset::name).collect::<Vec<_>>().join(", ");
    records.num_examples = corpora.iter().map(Dataset::len).sum();
    let has_texts = corpora.iter().any(|data| matches!(data, Dataset::Texts(_)));
    records.max_tokens = has_texts.then_some(options.max_tokens);
    records.date = today(SystemTime::now());
    records.command.clone_from(&options.command);
    Ok(())
}

fn not_measured(
    graph: &FamilyGraph,
    records: &QualityRecords,
    plans: BTreeSet<Plan>,
) -> BTreeSet<Plan> {
    let measured = |plan: &Plan| records.plans.contains_key(PlanId::of(graph, plan).as_str());
    plans.into_iter().filter(|plan| !measured(plan)).collect()
}

/// Measures `plans` on each of `corpora`, and no other plan. The records are not those by which
/// plans are chosen: a report on corpora that had no part in that.
///
/// # Errors
///
/// Fails when a plan id is wrong, a plan cannot be run, and on a corpus like [`evaluate`].
pub fn report(
    executor: &mut Executor,
    corpora: &[Dataset],
    plans: &[&str],
    options: &EvaluateOptions,
    progress: &dyn Progress,
) -> Result<QualityRecords, FitError> {
    let family = executor.family().clone();
    check_corpora(corpora, &FitRecords::read(&family.folder)?)?;
    let mut records = QualityRecords::default();
    describe(&mut records, &family, corpora, options)?;
    let reference = reference_of(&family)?;
    let plans = plans.iter().map(|plan| PlanId::parse(&family.graph, plan));
    let mut plans = plans.collect::<Result<BTreeSet<_>, _>>()?;
    plans.insert(reference.clone());
    let task = Task { plans: &plans, reference: &reference, max_tokens: options.max_tokens };
    task.judge(executor, corpora, progress)?.note(&mut records, &family.graph);
    records.fit_losses(&family.graph);
    Ok(records)
}

/// Returns the plan that defines a quality of 1.
fn reference_of(family: &Family) -> Result<Plan, FitError> {
    let plan = reference_plan(&family.graph, &family.manifest.reference);
    plan.ok_or_else(|| FitError::Family("the reference has no head".into()))
}

/// Plans to be measured.
struct Task<'a> {
    plans: &'a BTreeSet<Plan>,
    reference: &'a Plan,
    max_tokens: usize,
}

/// Figures of plans, by corpus.
#[derive(Default)]
struct Judged {
    plans: BTreeMap<Plan, Vec<(String, Judgement)>>,
    /// Quality of a constant answer on each corpus.
    constants: Vec<(String, f64)>,
}

impl Judged {
    /// Puts the figures into `records`.
    fn note(self, records: &mut QualityRecords, graph: &FamilyGraph) {
        for (plan, judged) in self.plans {
            records.note(PlanId::of(graph, &plan).as_str(), judged);
        }
        for (corpus, constant) in self.constants {
            records.note_constant(corpus, constant);
        }
    }
}

impl Task<'_> {
    /// Runs the plans on each of `corpora`, and judges each plan by its outputs.
    fn judge(
        &self,
        executor: &mut Executor,
        corpora: &[Dataset],
        progress: &dyn Progress,
    ) -> Result<Judged, FitError> {
        let manifest = executor.family().manifest.clone();
        let mut judged = Judged::default();
        for data in corpora {
            let mut note = |plan: &Plan, own| {
                judged.plans.entry(plan.clone()).or_default().push((data.name(), own));
            };
            let constant = match manifest.quality.metric {
                Metric::Accuracy => {
                    let missing = || FitError::Family("accuracy needs labelled data".into());
                    let labels = data.labels().ok_or_else(missing)?;
                    let outputs = run_all(executor, data, self.plans, self.max_tokens, progress)?;
                    outputs.iter().for_each(|(plan, own)| note(plan, by_labels(own, labels)));
                    commonest(labels)
                }
                Metric::Agreement => self.compare(executor, data, progress, &mut note)?,
                Metric::RecallAt10 => {
                    let outputs = run_all(executor, data, self.plans, self.max_tokens, progress)?;
                    let truth = self.truth(&outputs)?.clone();
                    let judge = TextJudge::new(data, truth, manifest.output.width);
                    for (plan, found) in &outputs {
                        progress.go_on()?;
                        note(plan, judge.judge(found));
                    }
                    judge.constant()
                }
            };
            judged.constants.push((data.name(), constant));
        }
        Ok(judged)
    }

    /// Judges the plans by what the reference says of the same inputs, and returns the quality of a
    /// constant answer. As many plans run at once as their scores have room.
    fn compare(
        &self,
        executor: &mut Executor,
        data: &Dataset,
        progress: &dyn Progress,
        note: &mut dyn FnMut(&Plan, Judgement),
    ) -> Result<f64, FitError> {
        let width = executor.family().manifest.output.width;
        let at_once = MAX_SCORES / (data.len() * width).max(1);
        let plans: Vec<&Plan> = self.plans.iter().collect();
        let mut constant = 0.0;
        for plans in plans.chunks(at_once.max(1)) {
            let mut plans: BTreeSet<Plan> = plans.iter().copied().cloned().collect();
            plans.insert(self.reference.clone());
            let outputs = run_all(executor, data, &plans, self.max_tokens, progress)?;
            let judge = ScoreJudge::new(self.truth(&outputs)?, width);
            for plan in plans.iter().filter(|plan| self.plans.contains(plan)) {
                progress.go_on()?;
                if let Some(scores) = outputs.get(plan) {
                    note(plan, judge.judge(scores));
                }
            }
            constant = commonest(judge.classes());
        }
        Ok(constant)
    }

    /// Returns what the reference says, which is among `outputs`.
    fn truth<'o>(&self, outputs: &'o HashMap<Plan, Vec<f32>>) -> Result<&'o Vec<f32>, FitError> {
        let truth = outputs.get(self.reference);
        truth.ok_or_else(|| FitError::Family("the reference did not run".into()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::{Corpus, Text};

    fn corpus(name: &str, words: &[&str]) -> Dataset {
        let text = |(place, word): (usize, &&str)| Text {
            id: format!("{name}/{place}"),
            text: (*word).to_owned(),
            label: None,
            answer: None,
        };
        Dataset::Texts(Corpus::of(name, words.iter().enumerate().map(text).collect()))
    }

    fn fitted_on(data: &Dataset) -> FitRecords {
        let record = serde_json::json!({"sha256": "", "samples": 1, "regularization": 1.0,
            "held_out_r2": 1.0, "data": data.name(), "date": ""});
        let maps = serde_json::json!({"maps": {"fits/a-b.safetensors": record}});
        let mut records: FitRecords = serde_json::from_value(maps).expect("records");
        records.note_texts(&data.name(), data.digests());
        records
    }

    #[test]
    fn a_corpus_must_be_large_and_new() {
        let words: Vec<String> = (0..40).map(|index| format!("word {index}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let fits = fitted_on(&corpus("fitted", &words[..20]));
        let told = |corpora: &[Dataset]| match check_corpora(corpora, &fits) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(told(&[corpus("new", &words[20..])]), "");
        for few in [&[][..], &["one"]] {
            let error = told(&[corpus("few", few)]);
            assert!(error.contains(&format!("but there are {}", few.len())), "{error}");
        }
        // A text that differs in white space and capitals alone is the same.
        let mut seen = words[20..].to_vec();
        seen.push("  Word\n 7");
        let error = told(&[corpus("new", &words[20..]), corpus("seen", &seen)]);
        assert!(error.contains("seen: 1 of 21 texts, such as `seen/20`"), "{error}");
        let twice = [corpus("new", &words[20..]), corpus("new", &words[20..])];
        assert!(told(&twice).contains("two files are called new"));
        let same = vec!["word"; 20];
        assert_eq!(told(&[corpus("equal", &same)]), "");
    }

    #[test]
    fn texts_of_fits_that_are_gone_are_forgotten() {
        let mut fits = fitted_on(&corpus("old", &["a"; 20]));
        for record in fits.maps.values_mut() {
            record.data = "new".to_owned();
        }
        fits.note_texts("new", corpus("new", &["b"; 20]).digests());
        assert_eq!(fits.texts.keys().collect::<Vec<_>>(), ["new"]);
        let json = serde_json::to_string(&fits).expect("JSON");
        let again: FitRecords = serde_json::from_str(&json).expect("records");
        assert_eq!(again.texts, fits.texts);
    }
}
