//! Judging plans by their outputs: against the reference's, against labels, and by answers found.

use std::collections::{BTreeMap, HashMap};

use faer::MatRef;

use super::recall::{Neighbours, nearest, products};
use crate::{
    fit::Dataset,
    offer::{Judgement, Share},
};

/// Most texts whose order of similarities is compared, since each takes a sort of all others.
const MAX_RANKED: usize = 500;

/// Factor of a standard error in a 95 % interval.
const Z: f64 = 1.96;

/// Judges the classes of one plan, whole numbers, by the images' labels.
pub(super) fn by_labels(classes: &[f32], labels: &[usize]) -> Judgement {
    #[expect(clippy::cast_precision_loss, reason = "classes are far below 2^24")]
    let is_right = |(class, label): (&f32, &usize)| (*class - *label as f32).abs() < 0.5;
    let right = classes.iter().zip(labels).filter(|(class, label)| is_right((class, label)));
    let Share { share, interval } = share(right.count(), labels.len());
    Judgement { quality: share, interval, ..Judgement::default() }
}

/// Returns the share of the commonest of `labels`.
#[expect(clippy::cast_precision_loss, reason = "counts of examples are small")]
pub(super) fn commonest(labels: &[usize]) -> f64 {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    labels.iter().for_each(|label| *counts.entry(*label).or_default() += 1);
    counts.values().max().copied().unwrap_or(0) as f64 / labels.len().max(1) as f64
}

/// Scores of the reference for some images.
#[derive(Debug)]
pub(super) struct ScoreJudge {
    /// Class that scores highest, by image.
    classes: Vec<usize>,
    /// Ranks of the scores, by image.
    ranks: Vec<Vec<f64>>,
    width: usize,
}

impl ScoreJudge {
    /// Creates the judge of plans on images for which the reference gives `reference`,
    /// `[images, classes]`.
    pub(super) fn new(reference: &[f32], width: usize) -> Self {
        let rows = || reference.chunks_exact(width);
        Self {
            classes: rows().map(best_class).collect(),
            ranks: rows().map(ranks).collect(),
            width,
        }
    }

    /// Returns the class that scores highest for each image.
    pub(super) fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Judges the scores of one plan, `[images, classes]`.
    pub(super) fn judge(&self, scores: &[f32]) -> Judgement {
        let rows = || scores.chunks_exact(self.width);
        let same = rows().zip(&self.classes).filter(|(row, class)| best_class(row) == **class);
        let Share { share, interval } = share(same.count(), self.classes.len());
        let correlations: Vec<f64> =
            rows().zip(&self.ranks).map(|(row, own)| correlation(&ranks(row), own)).collect();
        let rank_correlation = Some(mean_of(&correlations).0);
        Judgement { quality: share, interval, rank_correlation, ..Judgement::default() }
    }
}

/// Returns the class of the highest of `scores`.
pub(super) fn best_class(scores: &[f32]) -> usize {
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(class, _)| class)
}

/// Embeddings of the reference for some texts, and what is known of these.
#[derive(Debug)]
pub(super) struct TextJudge<'d> {
    neighbours: Neighbours,
    /// Ranks of the reference's similarities, by text.
    ranks: Vec<(usize, Vec<f64>)>,
    /// Classes of the texts, if all have one.
    labels: Option<Vec<&'d str>>,
    /// Questions with the position of their answer.
    questions: Vec<(usize, usize)>,
    /// Positions of all answers.
    answers: Vec<usize>,
    width: usize,
}

impl<'d> TextJudge<'d> {
    /// Creates the judge of plans on `data`, for whose texts the reference gives `reference`,
    /// `[texts, width]`.
    pub(super) fn new(data: &'d Dataset, reference: Vec<f32>, width: usize) -> Self {
        let texts = match data {
            Dataset::Texts(corpus) => corpus.texts(),
            Dataset::Images(_) => &[],
        };
        let rows = reference.len().checked_div(width).unwrap_or(0);
        let step = rows.div_ceil(MAX_RANKED).max(1);
        let similar = products(&reference, &reference, width);
        let ranks = (0..rows).step_by(step).map(|text| {
            let others = (0..rows).filter(|other| *other != text);
            (text, ranks(&others.map(|other| similar[(other, text)]).collect::<Vec<_>>()))
        });
        let ranks = ranks.collect();
        let places: HashMap<&str, usize> =
            texts.iter().enumerate().map(|(place, text)| (&*text.id, place)).collect();
        let question = |(place, answer): (usize, Option<&String>)| {
            Some((place, *places.get(answer?.as_str())?))
        };
        let questions: Vec<(usize, usize)> = texts
            .iter()
            .map(|text| text.answer.as_ref())
            .enumerate()
            .filter_map(question)
            .collect();
        let mut answers: Vec<usize> = questions.iter().map(|(_, answer)| *answer).collect();
        answers.sort_unstable();
        answers.dedup();
        let labels = texts.iter().map(|text| text.label.as_deref()).collect::<Option<Vec<_>>>();
        let labels = labels.filter(|labels| !labels.is_empty());
        let neighbours = Neighbours::new(reference, width);
        Self { neighbours, ranks, labels, questions, answers, width }
    }

    /// Returns the quality of an answer that is the mean of all vectors, whatever the text.
    pub(super) fn constant(&self) -> f64 {
        let reference = self.neighbours.reference();
        let mut mean = vec![0.0; self.width];
        for row in reference.chunks_exact(self.width) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        mean_of(&self.neighbours.recalls(&mean.repeat(reference.len() / self.width))).0
    }

    /// Judges the embeddings of one plan, `[texts, width]`.
    pub(super) fn judge(&self, embeddings: &[f32]) -> Judgement {
        let similar = products(embeddings, self.neighbours.reference(), self.width);
        let (quality, interval) = mean_of(&self.neighbours.recalls_of(&similar));
        let correlations = self.ranks.iter().map(|(text, expected)| {
            let others = (0..similar.nrows()).filter(|other| other != text);
            let found = others.map(|other| similar[(other, *text)]).collect::<Vec<_>>();
            correlation(&ranks(&found), expected)
        });
        let correlations: Vec<f64> = correlations.collect();
        Judgement {
            quality,
            interval,
            rank_correlation: Some(mean_of(&correlations).0),
            labels: self.labels.as_ref().map(|labels| classified(embeddings, labels, self.width)),
            answers: (!self.questions.is_empty()).then(|| self.answered(embeddings)),
        }
    }

    /// Returns the share of the questions whose answer is the nearest of all answers.
    fn answered(&self, embeddings: &[f32]) -> Share {
        let rows = embeddings.len().checked_div(self.width).unwrap_or(0);
        let view = MatRef::from_row_major_slice(embeddings, rows, self.width);
        let similar = |one: usize, other: usize| -> f32 {
            let pairs = view.row(one).iter().zip(view.row(other).iter());
            pairs.map(|(a, b)| a * b).sum()
        };
        let is_first = |(question, answer): &&(usize, usize)| {
            let own = similar(*question, *answer);
            let others = self.answers.iter().filter(|other| *other != answer);
            others.into_iter().all(|other| similar(*question, *other) < own)
        };
        share(self.questions.iter().filter(is_first).count(), self.questions.len())
    }
}

/// Returns the share of the texts whose class is that of most of their nearest ones.
fn classified(embeddings: &[f32], labels: &[&str], width: usize) -> Share {
    let near = nearest(&products(embeddings, embeddings, width));
    let is_right = |(place, near): &(usize, &Vec<usize>)| {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        near.iter().for_each(|other| *votes.entry(labels[*other]).or_default() += 1);
        let own = votes.get(labels[*place]).copied().unwrap_or(0);
        votes.iter().all(|(label, count)| *label == labels[*place] || *count < own)
    };
    share(near.iter().enumerate().filter(is_right).count(), labels.len())
}

/// Returns the share `right` of `all`, with Wilson's interval.
#[expect(clippy::cast_precision_loss, reason = "counts of examples are small")]
fn share(right: usize, all: usize) -> Share {
    let n = all.max(1) as f64;
    let share = right as f64 / n;
    let (middle, scale) = (share + Z * Z / (2.0 * n), 1.0 + Z * Z / n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Share { share, interval: [(middle - half) / scale, (middle + half) / scale] }
}

/// Returns the mean of `values` and its interval.
#[expect(clippy::cast_precision_loss, reason = "counts of examples are small")]
fn mean_of(values: &[f64]) -> (f64, [f64; 2]) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    let half = Z * (variance / n).sqrt();
    (mean, [(mean - half).max(0.0), (mean + half).min(1.0)])
}

/// Returns the rank of each of `values`; equal ones share their mean rank.
#[expect(clippy::cast_precision_loss, reason = "counts of examples are small")]
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for equal in order.chunk_by(|a, b| values[*a].total_cmp(&values[*b]).is_eq()) {
        let rank = start as f64 + (equal.len() - 1) as f64 / 2.0;
        equal.iter().for_each(|place| ranks[*place] = rank);
        start += equal.len();
    }
    ranks
}

/// Returns Pearson's correlation of `a` and `b`, or 0 if one of them does not vary.
#[expect(clippy::cast_precision_loss, reason = "counts of examples are small")]
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().max(1) as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let [mut both, mut only_a, mut only_b] = [0.0; 3];
    for (a, b) in a.iter().zip(b) {
        both += (a - mean_a) * (b - mean_b);
        only_a += (a - mean_a).powi(2);
        only_b += (b - mean_b).powi(2);
    }
    let scale = (only_a * only_b).sqrt();
    if scale > 0.0 { both / scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::{Corpus, Text};

    fn text(id: &str, label: Option<&str>, answer: Option<&str>) -> Text {
        let [label, answer] = [label, answer].map(|own| own.map(str::to_owned));
        Text { id: id.to_owned(), text: id.to_owned(), label, answer }
    }

    #[test]
    fn a_plan_is_judged_by_neighbours_order_labels_and_answers() {
        // Two groups of texts on a circle; each question stands beside its answer.
        let angles: Vec<f32> =
            (0..24_u8).map(|at| f32::from(at % 12) * 0.02 + f32::from(at / 12) * 2.0).collect();
        let place = |angle: &f32| [angle.cos(), angle.sin()];
        let reference: Vec<f32> = angles.iter().flat_map(place).collect();
        let name = |at: usize| format!("t{at}");
        let texts = (0..24).map(|at| {
            let group = if at < 12 { "one" } else { "two" };
            let answer = (at % 12 == 0).then(|| name(at + 1));
            text(&name(at), Some(group), answer.as_deref())
        });
        let data = Dataset::Texts(Corpus::of("some.jsonl", texts.collect()));
        let judge = TextJudge::new(&data, reference.clone(), 2);
        let same = judge.judge(&reference);
        assert_eq!((same.quality, same.interval), (1.0, [1.0, 1.0]));
        // The mean lies between the groups; ten texts are the nearest to it for every text.
        assert!((0.3..0.6).contains(&judge.constant()), "{}", judge.constant());
        assert!((same.rank_correlation.expect("ranks") - 1.0).abs() < 1e-9);
        assert!((same.labels.expect("labels").share - 1.0).abs() < 1e-9);
        assert!((same.answers.expect("answers").share - 1.0).abs() < 1e-9);
        // A plan that takes one group for the other finds none of the neighbours.
        let turned: Vec<f32> = angles.iter().map(|a| a + 2.0).flat_map(|a| place(&a)).collect();
        let wrong = judge.judge(&turned);
        assert!(wrong.quality < 0.6 && wrong.rank_correlation.expect("ranks") < 0.9);
        assert!((wrong.labels.expect("labels").share - 1.0).abs() < 1e-9, "groups stay apart");
    }

    #[test]
    fn scores_are_judged_by_the_class_that_wins_and_by_their_order() {
        let reference = [0.1, 0.2, 0.7, 0.5, 0.4, 0.1];
        let judge = ScoreJudge::new(&reference, 3);
        assert_eq!(judge.classes(), [2, 0]);
        let same = judge.judge(&reference);
        assert!((same.quality - 1.0).abs() < 1e-9 && same.interval[0] < 0.5);
        assert!((same.rank_correlation.expect("ranks") - 1.0).abs() < 1e-9);
        // The first image keeps its order, the second one has the opposite.
        let half = judge.judge(&[-3.0, -2.0, -1.0, 0.1, 0.4, 0.5]);
        assert!((half.quality - 0.5).abs() < 1e-9);
        assert!(half.rank_correlation.expect("ranks").abs() < 1e-9);
    }

    #[test]
    fn the_commonest_class_is_a_constant_answer() {
        assert!((commonest(&[1, 2, 1, 3]) - 0.5).abs() < 1e-9);
        assert!(commonest(&[]).abs() < 1e-9);
    }

    #[test]
    fn an_interval_holds_its_share_and_narrows() {
        let few = share(9, 10);
        let many = share(900, 1_000);
        for found in [&few, &many] {
            assert!(found.interval[0] < 0.9 && 0.9 < found.interval[1] && found.interval[1] < 1.0);
        }
        assert!(few.interval[1] - few.interval[0] > 3.0 * (many.interval[1] - many.interval[0]));
        // Wilson (1927): 0 of 10 is compatible with up to .278.
        let none = share(0, 10).interval;
        assert!(none[0].abs() < 1e-9 && (none[1] - 0.2775).abs() < 1e-3, "{none:?}");
    }

    #[test]
    fn ranks_of_equal_values_are_shared() {
        assert_eq!(ranks(&[0.5, 0.1, 0.5, 0.9]), [1.5, 0.0, 1.5, 3.0]);
        let up = ranks(&[1.0, 2.0, 3.0]);
        let down = ranks(&[3.0, 2.0, 1.0]);
        assert!((correlation(&up, &down) + 1.0).abs() < 1e-9);
        assert!(correlation(&up, &[1.0; 3]).abs() < 1e-9);
    }
}
