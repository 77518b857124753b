//! The choice of one plan for a budget.
//!
//! The choice is a linear scan over plans by descending quality. It takes a few microseconds for
//! hundreds of plans. It does not queue, load or run anything. The budget states the remaining
//! time.

use std::{fmt, time::Duration};

use thiserror::Error;

use super::{
    budget::Budget,
    shape::Shape,
    table::{PlanEntry, PlanTable, ShapeAt},
};

/// Most ids suggested for an unknown plan id.
const MAX_NEAREST: usize = 5;

/// Error for a request without a suitable plan.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ChooseError {
    /// The requested plan does not exist.
    #[error("no plan `{plan}`; nearest: {}", nearest.join(", "))]
    NotFound {
        /// The requested id.
        plan: String,
        /// Up to five existing ids, the most similar first.
        nearest: Vec<String>,
    },
    /// No plan meets the budget.
    #[error(transparent)]
    Infeasible(Box<Infeasible>),
}

/// The plan a budget gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice<'a> {
    /// The plan.
    pub entry: &'a PlanEntry,
    /// Predicted latency at the requested shape in seconds, including `extra_seconds` and excluding
    /// the margin.
    pub predicted_latency_seconds: f64,
    /// Memory that the plan needs at the requested shape, in bytes.
    pub memory_bytes: u64,
}

/// The costs and the quality of a plan at the requested shape.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanCost {
    /// Id of the plan.
    pub id: String,
    /// Predicted latency in seconds, excluding the margin.
    pub latency_seconds: f64,
    /// Bytes of weights and peak activations.
    pub memory_bytes: u64,
    /// Quality in [0, 1].
    pub quality: f64,
}

/// Error for a budget that no plan meets, with the nearest costs and quality.
///
/// Each of the three extremes is taken over the plans that meet the other two constraints. If no
/// plan meets these, it is taken over all plans.
#[derive(Debug, Clone, PartialEq)]
pub struct Infeasible {
    /// The requested budget.
    pub budget: Budget,
    /// The plan with the least latency, or the plan that the budget names.
    pub cheapest: PlanCost,
    /// Least memory of a plan, in bytes.
    pub least_memory_bytes: u64,
    /// Highest quality of a plan.
    pub best_quality: f64,
    /// Fraction of a predicted latency that was added as a margin before the comparison.
    pub margin: f64,
}

impl Infeasible {
    /// Returns the least latency budget that the cheapest plan fits, including its margin. It is
    /// rounded up, so a request with it succeeds.
    pub fn least_latency_budget(&self) -> Duration {
        let seconds = with_margin(self.cheapest.latency_seconds, self.margin);
        let exact = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        exact.saturating_add(Duration::from_micros(1))
    }
}

impl std::error::Error for Infeasible {}

impl fmt::Display for Infeasible {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanCost { id, latency_seconds, memory_bytes, quality } = &self.cheapest;
        let subject = if self.budget.plan.is_some() { "plan" } else { "the cheapest plan" };
        let latency_ms = latency_seconds * 1e3;
        write!(formatter, "no plan meets the budget")?;
        if let Some(latency) = self.budget.latency {
            write!(formatter, " of {:.3} ms", latency.as_secs_f64() * 1e3)?;
        }
        if let Some(memory) = self.budget.memory_bytes {
            write!(formatter, " in {memory} bytes")?;
        }
        if let Some(quality) = self.budget.min_quality {
            write!(formatter, " at quality {quality} or better")?;
        }
        write!(
            formatter,
            "; {subject} `{id}` takes {latency_ms:.3} ms (+{:.0} % margin) and \
             {memory_bytes} bytes at quality {quality:.4}; the best quality is {:.4}, \
             the least memory {} bytes",
            self.margin * 1e2,
            self.best_quality,
            self.least_memory_bytes,
        )
    }
}

/// A budget as plain limits, infinite or zero for a missing constraint.
struct Limits {
    latency_seconds: f64,
    memory_bytes: u64,
    min_quality: f64,
    margin: f64,
}

impl Limits {
    fn new(budget: &Budget, margin: f64) -> Self {
        Self {
            latency_seconds: budget.latency.map_or(f64::INFINITY, |latency| latency.as_secs_f64()),
            memory_bytes: budget.memory_bytes.unwrap_or(u64::MAX),
            min_quality: budget.min_quality.unwrap_or(0.0),
            margin,
        }
    }

    fn admits_latency(&self, latency_seconds: f64) -> bool {
        with_margin(latency_seconds, self.margin) <= self.latency_seconds
    }

    fn admits_memory(&self, memory_bytes: u64) -> bool {
        memory_bytes <= self.memory_bytes
    }

    fn admits_quality(&self, entry: &PlanEntry) -> bool {
        entry.quality.value >= self.min_quality
    }

    /// Returns the plan with its costs, or `None` if it exceeds a limit. Calls `extra_seconds` only
    /// if the plan meets the quality and latency limits without them.
    fn admit<'a>(
        &self,
        entry: &'a PlanEntry,
        shape: &ShapeAt,
        extra_seconds: &dyn Fn(&PlanEntry) -> f64,
    ) -> Option<Choice<'a>> {
        let latency_seconds = shape.latency_seconds(entry);
        if !self.admits_quality(entry) || !self.admits_latency(latency_seconds) {
            return None;
        }
        let predicted_latency_seconds = latency_seconds + extra_seconds(entry);
        if !self.admits_quality(entry) || !self.admits_latency(predicted_latency_seconds) {
            return None;
        }
        let memory_bytes = shape.memory_bytes(entry);
        let choice = Choice { entry, predicted_latency_seconds, memory_bytes };
        self.admits_memory(memory_bytes).then_some(choice)
    }
}

impl PlanTable {
    /// Chooses the plan for a budget, for `batch` sequences of `tokens` tokens.
    ///
    /// - A budget with a plan id: the named plan, if it meets the other constraints.
    /// - A budget with a least quality and no latency: the plan with the least latency that meets
    ///   the rest.
    /// - Any other budget: the plan with the highest quality that meets all constraints.
    ///
    /// # Errors
    ///
    /// Fails on an unknown plan id, and on a budget that no plan, or not the named plan, meets.
    pub fn choose(&self, shape: Shape, budget: &Budget) -> Result<Choice<'_>, ChooseError> {
        self.choose_besides(shape, budget, &|_| 0.0)
    }

    /// Chooses like [`Self::choose`], with `extra_seconds` added to each plan's latency, such as
    /// the time to load missing modules.
    ///
    /// # Errors
    ///
    /// Fails like [`Self::choose`].
    pub fn choose_besides(
        &self,
        shape: Shape,
        budget: &Budget,
        extra_seconds: &dyn Fn(&PlanEntry) -> f64,
    ) -> Result<Choice<'_>, ChooseError> {
        let limits = Limits::new(budget, self.margin());
        let shape = self.locate(shape);
        let chosen = if let Some(id) = &budget.plan {
            let entry = self.find(id).ok_or_else(|| self.not_found(id))?;
            limits.admit(entry, &shape, extra_seconds)
        } else {
            let entries = self.entries().iter().take_while(|entry| limits.admits_quality(entry));
            let mut fitting =
                entries.filter_map(|entry| limits.admit(entry, &shape, extra_seconds));
            let wants_speed = budget.latency.is_none() && budget.min_quality.is_some();
            if wants_speed { fastest(fitting) } else { fitting.next() }
        };
        let explain = || Box::new(self.explain(budget, &limits, &shape, extra_seconds));
        chosen.ok_or_else(|| ChooseError::Infeasible(explain()))
    }

    /// Returns the nearest costs and quality for a budget that no plan meets.
    fn explain(
        &self,
        budget: &Budget,
        limits: &Limits,
        shape: &ShapeAt,
        extra_seconds: &dyn Fn(&PlanEntry) -> f64,
    ) -> Infeasible {
        // In each tuple `false` sorts first, so plans that meet the other constraints beat plans
        // that do not.
        let mut cheapest = (true, f64::INFINITY, 0);
        let mut smallest = (true, u64::MAX);
        let mut best = (true, 0);
        for (index, entry) in self.entries().iter().enumerate() {
            let latency_seconds = shape.latency_seconds(entry) + extra_seconds(entry);
            let memory_bytes = shape.memory_bytes(entry);
            let is_slow = !limits.admits_latency(latency_seconds);
            let is_large = !limits.admits_memory(memory_bytes);
            let is_poor = !limits.admits_quality(entry);
            if budget.plan.as_ref().is_none_or(|plan| *plan == entry.id) {
                let candidate = (is_large || is_poor, latency_seconds, index);
                if candidate < cheapest {
                    cheapest = candidate;
                }
            }
            smallest = smallest.min((is_slow || is_poor, memory_bytes));
            best = best.min((is_slow || is_large, index));
        }
        let named = &self.entries()[cheapest.2];
        Infeasible {
            budget: budget.clone(),
            cheapest: PlanCost {
                id: named.id.clone(),
                latency_seconds: cheapest.1,
                memory_bytes: shape.memory_bytes(named),
                quality: named.quality.value,
            },
            least_memory_bytes: smallest.1,
            best_quality: self.entries()[best.1].quality.value,
            margin: limits.margin,
        }
    }

    fn not_found(&self, plan: &str) -> ChooseError {
        let mut ids: Vec<&str> = self.entries().iter().map(|entry| entry.id.as_str()).collect();
        ids.sort_by_cached_key(|id| distance(plan, id));
        ids.truncate(MAX_NEAREST);
        let nearest = ids.into_iter().map(str::to_owned).collect();
        ChooseError::NotFound { plan: plan.to_owned(), nearest }
    }
}

fn with_margin(latency_seconds: f64, margin: f64) -> f64 {
    latency_seconds * (1.0 + margin)
}

/// Returns the choice with the least latency, or `None` if there are no choices. Of equal choices
/// it is the first, which has the highest quality.
fn fastest<'a>(choices: impl Iterator<Item = Choice<'a>>) -> Option<Choice<'a>> {
    choices.min_by(|left, right| {
        left.predicted_latency_seconds.total_cmp(&right.predicted_latency_seconds)
    })
}

/// Returns the number of bytes of the longer id outside the common prefix and suffix.
///
/// It takes linear time, unlike the edit distance, and is as good for ids that differ in one place.
fn distance(left: &str, right: &str) -> usize {
    let (shorter, longer) = if left.len() <= right.len() { (left, right) } else { (right, left) };
    let num_prefix = count_equal(shorter.bytes(), longer.bytes());
    let num_suffix = count_equal(shorter.bytes().rev(), longer.bytes().rev());
    longer.len() - (num_prefix + num_suffix).min(shorter.len())
}

fn count_equal(left: impl Iterator<Item = u8>, right: impl Iterator<Item = u8>) -> usize {
    left.zip(right).take_while(|(left, right)| left == right).count()
}
