//! Tokens that may be drawn: filters of a distribution, in transformers' order.

use std::cmp::Ordering;

use super::{
    exponential::{exponential, sum},
    parameters::SamplingParameters,
    top::{Scored, find_top},
};

/// Token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// Id of the token.
    pub(super) token: u32,
    /// Probability as a multiple of the greatest.
    pub(super) weight: f32,
    /// Number by which the candidates are ordered, the least first.
    key: f32,
}

/// Room to find the tokens that may be drawn.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Probabilities of all tokens as multiples of the greatest.
    weights: Vec<f32>,
    kept: Vec<Candidate>,
    work: Vec<Candidate>,
    best: Vec<Scored>,
}

impl Candidates {
    /// Draws a token from `logits`, the greatest of which is `greatest`; `number` in 0..1 says
    /// which.
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        greatest: f32,
        parameters: &SamplingParameters,
        number: f64,
    ) -> Option<u32> {
        let is_plain = parameters.top_p >= 1.0 && parameters.typical_p >= 1.0;
        if is_plain && parameters.min_p <= 0.0 && top_k(logits, parameters).is_none() {
            self.weigh(logits, greatest, parameters.temperature.recip());
            let all = (0..).zip(self.weights.iter().copied());
            return at(all, number * sum(&self.weights));
        }
        let kept = self.find(logits, greatest, parameters);
        let all = kept.iter().map(|candidate| (candidate.token, candidate.weight));
        at(all, number * total(kept))
    }

    /// Finds the tokens that may be drawn from `logits`, in the order of their ids.
    pub(super) fn find(
        &mut self,
        logits: &[f32],
        greatest: f32,
        parameters: &SamplingParameters,
    ) -> &[Candidate] {
        self.kept.clear();
        match top_k(logits, parameters) {
            Some(top_k) => self.keep_top(logits, greatest, top_k, parameters),
            None => {
                self.weigh(logits, greatest, parameters.temperature.recip());
                let least = self.least(parameters);
                let all = (0..).zip(&self.weights).filter(|(_, weight)| **weight >= least);
                let candidate = |(token, weight): (u32, &f32)| Candidate::new(token, *weight);
                self.kept.extend(all.map(candidate));
            }
        }
        if parameters.top_p < 1.0 {
            let all =
                top_k(logits, parameters).map_or_else(|| sum(&self.weights), |_| total(&self.kept));
            self.keep_mass(all * f64::from(parameters.top_p));
        }
        if parameters.min_p > 0.0 {
            self.kept.retain(|candidate| candidate.weight >= parameters.min_p);
        }
        if parameters.typical_p < 1.0 {
            self.order_by_surprise();
            self.keep_mass(total(&self.kept) * f64::from(parameters.typical_p));
        }
        &self.kept
    }

    /// Returns the logarithm of the sum of the exponentials of `logits`.
    pub(super) fn log_total(&mut self, logits: &[f32], greatest: f32) -> f32 {
        self.weigh(logits, greatest, 1.0);
        #[expect(clippy::cast_possible_truncation, reason = "rounded to an f32")]
        let log = sum(&self.weights).ln() as f32;
        log + greatest
    }

    /// Computes the weights of all tokens, with logits times `scale`.
    fn weigh(&mut self, logits: &[f32], greatest: f32, scale: f32) {
        self.weights.clear();
        self.weights.extend(logits.iter().map(|logit| exponential((logit - greatest) * scale)));
    }

    /// Keeps the `top_k` greatest and those as great as the least of them.
    fn keep_top(
        &mut self,
        logits: &[f32],
        greatest: f32,
        top_k: usize,
        parameters: &SamplingParameters,
    ) {
        find_top(logits, top_k, &mut self.best);
        let least = self.best.iter().map(|scored| scored.1).fold(f32::INFINITY, f32::min);
        let scale = parameters.temperature.recip();
        let top = (0..).zip(logits).filter(|(_, logit)| **logit >= least);
        let candidate = |(token, logit): (u32, &f32)| {
            Candidate::new(token, exponential((logit - greatest) * scale))
        };
        self.kept.extend(top.map(candidate).filter(|candidate| candidate.weight > 0.0));
    }

    /// Returns a weight under which no token is kept.
    ///
    /// All tokens under an even share of what `top_p` leaves out have less than that together.
    fn least(&self, parameters: &SamplingParameters) -> f32 {
        if parameters.top_p >= 1.0 {
            return parameters.min_p.max(f32::MIN_POSITIVE);
        }
        #[expect(clippy::cast_precision_loss, reason = "vocabularies have under 2^24 tokens")]
        let share = (1.0 - f64::from(parameters.top_p)) / self.weights.len().max(1) as f64;
        #[expect(clippy::cast_possible_truncation, reason = "rounded to an f32")]
        let least = (sum(&self.weights) * share * 0.99) as f32;
        least.max(f32::MIN_POSITIVE)
    }

    /// Gives each candidate the distance of its surprise from the mean as its key.
    fn order_by_surprise(&mut self) {
        let total = total(&self.kept);
        let mut mean = 0.0;
        for candidate in &mut self.kept {
            let probability = f64::from(candidate.weight) / total;
            let surprise = -probability.ln();
            mean += probability * surprise;
            #[expect(clippy::cast_possible_truncation, reason = "rounded to an f32")]
            let key = surprise as f32;
            candidate.key = key;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded to an f32")]
        let mean = mean as f32;
        for candidate in &mut self.kept {
            candidate.key = (candidate.key - mean).abs();
        }
    }

    /// Keeps the first candidates by key that have at least `mass` together.
    fn keep_mass(&mut self, mass: f64) {
        self.work.clear();
        self.work.extend_from_slice(&self.kept);
        if let Some(last) = last_of_mass(&mut self.work, mass) {
            self.kept.retain(|candidate| by_key(candidate, &last) != Ordering::Greater);
        }
    }
}

impl Candidate {
    /// Creates a candidate that comes before those of less weight.
    fn new(token: u32, weight: f32) -> Self {
        Self { token, weight, key: -weight }
    }
}

/// Returns the number of the greatest that `parameters` keep, or None for all.
fn top_k(logits: &[f32], parameters: &SamplingParameters) -> Option<usize> {
    let top_k = parameters.top_k.and_then(|top_k| usize::try_from(top_k).ok());
    top_k.filter(|top_k| (1..logits.len()).contains(top_k))
}

/// Returns the weight of all `candidates`.
pub(super) fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Returns the token at which the weights of `all` reach `mass`, or the last with any.
fn at(all: impl Iterator<Item = (u32, f32)>, mut mass: f64) -> Option<u32> {
    let mut last = None;
    for (token, weight) in all {
        if weight > 0.0 {
            last = Some(token);
        }
        mass -= f64::from(weight);
        if mass < 0.0 {
            break;
        }
    }
    last
}

fn by_key(left: &Candidate, right: &Candidate) -> Ordering {
    left.key.total_cmp(&right.key).then(left.token.cmp(&right.token))
}

/// Returns the candidate with which the first ones by key reach `mass`, or None if there are none.
///
/// Each round looks at half of those that are left, so that all take about two passes.
fn last_of_mass(mut candidates: &mut [Candidate], mut mass: f64) -> Option<Candidate> {
    while candidates.len() > 1 {
        let middle = candidates.len() / 2;
        candidates.select_nth_unstable_by(middle, by_key);
        let (first, second) = candidates.split_at_mut(middle);
        let before = total(first);
        if before >= mass {
            candidates = first;
        } else {
            mass -= before;
            candidates = second;
        }
    }
    candidates.first().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_mass_is_reached_where_a_sorted_sum_reaches_it(
            weights in prop::collection::vec(1_u8..20, 1..60),
            fraction in 0.01_f64..1.0,
        ) {
            let candidate = |(token, weight): (u32, &u8)| Candidate::new(token, f32::from(*weight));
            let mut candidates: Vec<Candidate> = (0..).zip(&weights).map(candidate).collect();
            let mass = total(&candidates) * fraction;
            let mut sorted = candidates.clone();
            sorted.sort_by(by_key);
            let mut sum = 0.0;
            let expected = sorted.iter().find(|candidate| {
                sum += f64::from(candidate.weight);
                sum >= mass
            });
            prop_assert_eq!(last_of_mass(&mut candidates, mass), expected.copied());
        }
    }
}
