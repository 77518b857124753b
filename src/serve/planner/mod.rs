//! Choice of plans for one family, by the learned costs and the machine's current speed.

mod correction;
pub(super) mod follow;
pub(super) mod learned;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Observer, PlanSummary, ServeError,
    admission::waiting::{Expected, Need},
    families::loaded::LoadedFamily,
};
use crate::{
    family::{FamilyError, ModuleId, PlanId},
    offer::{Profile, entry},
    plan::{Budget, ChooseError, Plan, PlanEntry, PlanTable, Shape},
    runtime::Executor,
};
use correction::{Correction, Lesson};
use learned::{Learned, Run, seconds_of};

/// Planner that chooses the plans of a family.
#[derive(Debug)]
pub(crate) struct Planner {
    pub(super) loaded: LoadedFamily,
    /// Executor of the family, which knows the loaded modules.
    executor: Weak<Executor>,
    pub(super) correction: Correction,
    learned: Learned,
    /// Margin added to latencies before they are compared with the remaining budget, as a fraction
    /// of them.
    margin: f64,
    /// Whether every module of the family's plans is loaded, and none is ever evicted.
    is_loaded: AtomicBool,
}

/// Question for a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    /// Shape of the request, or of several together.
    pub(crate) shape: Shape,
    /// Budget of the plan; its latency is the remaining one.
    pub(crate) budget: &'a Budget,
    /// Time of the question.
    pub(crate) now: Instant,
}

/// Plan that is chosen for a budget.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(super) summary: PlanSummary,
    pub(super) plan: Plan,
    /// 80th percentile of the plan's run time now; excludes time spent before.
    pub(super) conservative: Duration,
    /// Predicted run time of the plan now; excludes time spent before.
    pub(super) predicted: Duration,
    /// Part of `conservative` that the fastest plan would not take; zero until the plan is chosen
    /// for a batch.
    pub(super) spare: Duration,
}

impl Chosen {
    /// Returns the choice without the time spent before, which differs by request.
    #[must_use]
    pub(super) fn without_elapsed(mut self) -> Self {
        self.summary.predicted_latency = self.predicted;
        self
    }

    /// Returns the time that the batch is expected to take.
    pub(super) fn expected(&self) -> Expected {
        Expected { time: self.conservative, spare: self.spare }
    }
}

impl Planner {
    /// Creates a planner for the family `loaded`.
    pub(super) fn new(loaded: LoadedFamily, executor: Weak<Executor>) -> Self {
        let margin = loaded.table.margin();
        let learned = Learned::new(&loaded);
        let (correction, is_loaded) = (Correction::default(), AtomicBool::new(false));
        Self { loaded, executor, correction, learned, margin, is_loaded }
    }

    /// Returns the executor of the family, or `None` if the family is no longer served.
    pub(super) fn executor(&self) -> Option<Arc<Executor>> {
        self.executor.upgrade()
    }

    /// Learns from a batch. Modules' latencies are learned from a batch without neighbours only.
    pub(super) fn learn(&self, run: &Run<'_>, observer: &dyn Observer) {
        let LoadedFamily { family, .. } = &self.loaded;
        let hear = |id: ModuleId, ratio| {
            let module = &family.graph.module(id).name;
            observer.module_corrected(&family.manifest.name, module, ratio);
        };
        let known = self.learned.learn(run, self.correction.machine(), &hear);
        let lesson = Lesson { known, measured: run.whole, is_alone: run.is_alone };
        self.correction.learn(run.ended, lesson);
    }

    /// Replaces the costs of all modules by those of `profile`, which was measured just now.
    pub(super) fn replace(&self, profile: &Profile) {
        let name = &self.loaded.family.manifest.name;
        match self.learned.replace(profile, self.correction.machine()) {
            Ok(()) => tracing::info!(family = name, "costs are those measured on this machine"),
            Err(error) => tracing::warn!(family = name, %error, "measured costs are not used"),
        }
    }

    /// Returns the plans that no other plan beats at this shape, cheapest first.
    pub(super) fn front(&self, shape: Shape, now: Instant) -> Vec<PlanSummary> {
        let tables = self.learned.tables();
        let front = tables.all.front(shape).into_iter();
        let factor = self.correction.factor(now);
        front.map(|entry| summary_of(entry, shape, factor)).collect()
    }

    /// Chooses the plan for the remaining `budget` after `elapsed`, with the reserve for batches
    /// that take longer than usual if a plan leaves it. Every plan would have spent `elapsed` as
    /// well, so predictions and the costs in an error include it.
    pub(super) fn plan_in_time(
        &self,
        question: &Question<'_>,
        elapsed: Duration,
    ) -> Result<Chosen, ServeError> {
        let budget = question.budget;
        let left = budget.latency.map(|latency| latency.saturating_sub(elapsed));
        let plan_within = |latency| {
            let budget = Budget { latency, ..budget.clone() };
            self.plan_for(&Question { budget: &budget, ..*question })
        };
        let reserve = self.correction.reserve(question.now);
        let reserved = left.map(|left| plan_within(Some(left.div_f64(reserve))));
        match reserved.and_then(Result::ok).map_or_else(|| plan_within(left), Ok) {
            Ok(mut chosen) => {
                chosen.summary.predicted_latency += elapsed;
                Ok(chosen)
            }
            Err(ServeError::Choose(mut error)) => {
                if let ChooseError::Infeasible(infeasible) = &mut *error {
                    infeasible.budget.latency = budget.latency;
                    infeasible.cheapest.latency_seconds += elapsed.as_secs_f64();
                }
                Err(ServeError::Choose(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Chooses the plan for `budget`. A plan that is named by id may be any path of the family,
    /// even one on no front.
    pub(super) fn plan_for(&self, question: &Question<'_>) -> Result<Chosen, ServeError> {
        match self.unlisted(question.budget)? {
            Some((table, budget)) => {
                self.choose_from(&table, &Question { budget: &budget, ..*question })
            }
            None => self.choose_from(&self.learned.tables().all, question),
        }
    }

    /// Returns whether a plan meets `budget` by its profiled latency.
    pub(super) fn is_feasible(&self, Question { shape, budget, .. }: &Question<'_>) -> bool {
        self.loaded.table.choose(*shape, budget).is_ok()
    }

    /// Chooses the fastest plan for a budget that no plan meets by its learned latency, which may
    /// be wrong by now. Returns `None` if no plan meets the budget by its profiled latency either,
    /// or if a measurement is fresh.
    pub(super) fn remeasure(&self, question: &Question<'_>) -> Option<Chosen> {
        if self.correction.is_fresh(question.now) || !self.is_feasible(question) {
            return None;
        }
        self.plan_for(&Question { budget: &question.budget.fastest(), ..*question }).ok()
    }

    /// Returns the least time that a request of this shape can take, margins included. Returns
    /// `None` if no plan meets its budget, however slow.
    pub(super) fn need(&self, Question { shape, budget, now }: &Question<'_>) -> Option<Need> {
        let Shape { batch, tokens } = *shape;
        let budget = budget.fastest();
        let conservative = self.correction.conservative(*now);
        let fastest = |rows| {
            let seconds = self.fastest_seconds(Shape::new(rows, tokens), &budget)?;
            Some(self.with_margin(Duration::from_secs_f64(seconds * conservative)))
        };
        let alone = fastest(batch)?;
        let full = self.loaded.profile.max_batch().max(batch);
        let whole = fastest(full).unwrap_or(alone);
        let least = (whole * share(batch) / share(full)).min(alone);
        Some(Need { least, alone, batch_extra: whole.saturating_sub(alone) })
    }

    /// Returns the seconds that the fastest plan for `budget` takes on a machine as fast as when it
    /// was profiled. Returns `None` if no plan meets `budget`, which has no latency.
    fn fastest_seconds(&self, shape: Shape, budget: &Budget) -> Option<f64> {
        match self.unlisted(budget).ok()? {
            Some((table, budget)) => seconds_of(&table, shape, &budget),
            None => self.learned.fastest_seconds(shape, budget),
        }
    }

    /// Returns a table of the path that `budget` names, and the budget for it. Returns `None` if
    /// `budget` names no path, or one in the family's table.
    fn unlisted(&self, budget: &Budget) -> Result<Option<(PlanTable, Budget)>, ServeError> {
        let LoadedFamily { family, quality, table, .. } = &self.loaded;
        let Some(id) = budget.plan.as_deref().filter(|id| table.find(id).is_none()) else {
            return Ok(None);
        };
        let unknown = |reason: String| ServeError::UnknownPlan { reason };
        let plan = PlanId::parse(&family.graph, id)
            .map_err(|error: FamilyError| unknown(error.to_string()))?;
        let entry = self
            .learned
            .with_profile(|profile| entry(family, profile, quality, plan))
            .map_err(|error| unknown(error.to_string()))?;
        let budget = Budget { plan: Some(entry.id.clone()), ..budget.clone() };
        let table =
            PlanTable::new(vec![entry], self.margin).map_err(|error| unknown(error.to_string()))?;
        Ok(Some((table, budget)))
    }

    /// Returns the conservative latency with the margin.
    pub(super) fn with_margin(&self, conservative: Duration) -> Duration {
        conservative.mul_f64(1.0 + self.margin)
    }

    /// Returns whether two paths read the same tokens.
    pub(super) fn read_alike(&self, left: &[ModuleId], right: &[ModuleId]) -> bool {
        self.loaded.tokenizer(left) == self.loaded.tokenizer(right)
    }

    /// Chooses a plan that reads the same tokens as `chosen`.
    pub(super) fn choose_alike(
        &self,
        chosen: &Chosen,
        question: &Question<'_>,
    ) -> Result<Chosen, ServeError> {
        match self.learned.tables().alike(&self.loaded, &chosen.plan.path) {
            Some(table) if question.budget.plan.is_none() => self.choose_from(table, question),
            _ => self.plan_for(question),
        }
    }

    /// Returns `chosen` with the part of its time that the fastest plan would not take. That plan
    /// answers `question` too, and reads the same tokens.
    pub(super) fn with_spare(&self, chosen: Chosen, question: &Question<'_>) -> Chosen {
        let Question { shape, budget, now } = *question;
        let budget = budget.fastest();
        let tables = self.learned.tables();
        let seconds = match tables.alike(&self.loaded, &chosen.plan.path) {
            Some(table) if budget.plan.is_none() => seconds_of(table, shape, &budget),
            _ => self.fastest_seconds(shape, &budget),
        };
        let spare = seconds.map_or(Duration::ZERO, |seconds| {
            let fastest = seconds * self.correction.conservative(now);
            chosen.conservative.saturating_sub(Duration::from_secs_f64(fastest))
        });
        Chosen { spare, ..chosen }
    }

    /// Returns the time to load each module, or `None` if all are loaded and never evicted.
    fn load_times(&self) -> Option<Vec<Duration>> {
        if self.is_loaded.load(Ordering::Relaxed) {
            return None;
        }
        let executor = self.executor()?;
        let times = executor.load_times();
        let used = self.loaded.table.entries().iter().flat_map(|entry| &entry.plan.path);
        let is_loaded = || used.into_iter().all(|id| times[id.0].is_zero());
        if !executor.may_evict() && is_loaded() {
            self.is_loaded.store(true, Ordering::Relaxed);
        }
        Some(times)
    }

    /// Chooses a plan from `table`, which does not know the machine's current speed. The correction
    /// is taken out of the budget that goes in and put into the latencies that come out. The time
    /// to load missing modules counts as well.
    fn choose_from(
        &self,
        table: &PlanTable,
        &Question { shape, budget, now }: &Question<'_>,
    ) -> Result<Chosen, ServeError> {
        let conservative = self.correction.conservative(now);
        let latency = budget.latency.map(|latency| latency.div_f64(conservative));
        let load_times = latency.and_then(|_| self.load_times());
        let loading = |entry: &PlanEntry| {
            let times = load_times
                .iter()
                .flat_map(|times| entry.plan.path.iter().filter_map(|id| times.get(id.0)));
            times.sum::<Duration>()
        };
        let extra_seconds = |entry: &PlanEntry| loading(entry).as_secs_f64() / conservative;
        let budget_in = Budget { latency, ..budget.clone() };
        let chosen = table.choose_besides(shape, &budget_in, &extra_seconds);
        let choice = chosen.map_err(|mut error| {
            if let ChooseError::Infeasible(infeasible) = &mut error {
                infeasible.budget.latency = budget.latency;
                infeasible.cheapest.latency_seconds *= conservative;
            }
            error
        })?;
        let plan = choice.entry.plan.clone();
        let mut summary = summary_of(choice.entry, shape, self.correction.factor(now));
        let loading = loading(choice.entry);
        summary.predicted_latency += loading;
        let seconds = choice.entry.latency_seconds_at(shape) * conservative;
        let conservative = Duration::from_secs_f64(seconds) + loading;
        let predicted = summary.predicted_latency;
        Ok(Chosen { summary, plan, conservative, predicted, spare: Duration::ZERO })
    }
}

fn share(rows: usize) -> u32 {
    u32::try_from(rows.max(1)).unwrap_or(u32::MAX)
}

/// Returns the summary of a plan at a shape, with its latency corrected by `factor`.
fn summary_of(entry: &PlanEntry, shape: Shape, factor: f64) -> PlanSummary {
    let seconds = entry.latency_seconds_at(shape) * factor;
    PlanSummary {
        plan: entry.id.clone(),
        predicted_latency: Duration::from_secs_f64(seconds),
        memory_bytes: entry.memory_bytes_at(shape),
        quality: entry.quality,
    }
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
