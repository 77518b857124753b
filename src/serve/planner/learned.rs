//! Costs of a family's modules as learned while they serve, and the resulting costs of its plans.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::follow::step;
use crate::{
    family::ModuleId,
    input::Prompts,
    offer::Profile,
    plan::{Budget, Plan, PlanError, PlanTable, Shape},
    serve::families::loaded::LoadedFamily,
};

/// Rate at which a module's latency at a shape follows the time in one batch. It is low, so that
/// the factor of all modules is the first to follow their common changes.
const RATE: f64 = 0.02;

/// Rate at which the latency returns to the profiled one in the same step. Common changes thus end
/// up in the factor, which also holds for modules that have not run.
const PULL: f64 = 0.002;

/// Largest ratio between a module's learned and profiled latencies, either way.
const MOST: f64 = 4.0;

/// Least change of a module's latency, as a logarithm, for which plans get new latencies.
/// `INTERVAL` is the least time between two such updates.
const NOTABLE: f64 = 0.01;
const INTERVAL: Duration = Duration::from_millis(250);

/// Largest number of budgets and shapes in the cache, since clients choose them.
const MAX_CACHED: usize = 1024;

/// Inputs of the choice of the fastest plan, besides the tables: shape, memory and quality bits.
type Key = (Shape, Option<u64>, Option<u64>);

/// Measurements of a batch that ran.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// Number of rows, and of tokens of each row.
    pub(crate) shape: Shape,
    /// Time that each module took.
    pub(crate) times: &'a [(ModuleId, Duration)],
    /// Time that the whole batch took.
    pub(crate) whole: Duration,
    /// Whether no other request ran, waited or arrived meanwhile.
    pub(crate) is_alone: bool,
    /// Time at which the batch ended.
    pub(crate) ended: Instant,
}

/// The latencies of a family's modules, by batch and length, as they are found to be on a machine
/// that is as fast as it was when they were profiled; how fast it is now is the [`Correction`]'s.
///
/// [`Correction`]: super::correction::Correction
#[derive(Debug)]
pub(crate) struct Learned {
    learning: Mutex<Learning>,
    tables: RwLock<Arc<Tables>>,
    fastest: Fastest<Tables>,
}

#[derive(Debug)]
struct Learning {
    profile: Profile,
    /// Latencies from which learning began, and near which it stays.
    measured: Profile,
    /// Change of each module's latency since the last update of the plans, as a logarithm.
    moved: Vec<f64>,
    updated: Option<Instant>,
}

/// Tables of the plans with their current latencies.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Table of all plans.
    pub(crate) all: PlanTable,
    /// Tables of the plans that read the same tokens, by tokenizer and prompts.
    alike: BTreeMap<Option<(PathBuf, Prompts)>, PlanTable>,
}

impl Tables {
    /// Returns the plans that read the same tokens as `path`, or `None` if no plan does.
    pub(crate) fn alike(&self, loaded: &LoadedFamily, path: &[ModuleId]) -> Option<&PlanTable> {
        let tokenizer = loaded.tokenizer(path);
        let reads = |known: &Option<(PathBuf, Prompts)>| {
            known.as_ref().map(|(location, prompts)| (location.as_path(), prompts)) == tokenizer
        };
        self.alike.iter().find(|(known, _)| reads(known)).map(|(_, table)| table)
    }
}

impl Learned {
    /// Creates the latencies of `loaded` as profiled.
    pub(crate) fn new(loaded: &LoadedFamily) -> Self {
        let profile = loaded.profile.clone();
        let moved = vec![0.0; loaded.family.graph.modules().len()];
        let measured = profile.clone();
        let learning = Mutex::new(Learning { profile, measured, moved, updated: None });
        let tables = Tables { all: loaded.table.clone(), alike: loaded.alike.clone() };
        Self { learning, tables: RwLock::new(Arc::new(tables)), fastest: Fastest::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Learning> {
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the tables of the plans with their current latencies.
    pub(crate) fn tables(&self) -> Arc<Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the seconds that the fastest plan for `budget` takes at `shape`, or `None` if no
    /// plan meets `budget`, which has no latency. Unless `budget` names a plan, this costs next to
    /// nothing, so that admission can refuse at that cost.
    pub(crate) fn fastest_seconds(&self, shape: Shape, budget: &Budget) -> Option<f64> {
        let tables = self.tables();
        let find = || seconds_of(&tables.all, shape, budget);
        match &budget.plan {
            Some(_) => find(),
            None => self.fastest.seconds(&tables, shape, budget, find),
        }
    }

    /// Calls `read` with the learned latencies and returns its result.
    pub(crate) fn with_profile<T>(&self, read: impl FnOnce(&Profile) -> T) -> T {
        read(&self.lock().profile)
    }

    /// Replaces all latencies by those of `measured`, on a machine that takes `factor` times as
    /// long as they will say.
    ///
    /// # Errors
    ///
    /// Fails when a latency is out of range after that.
    pub(crate) fn replace(&self, measured: &Profile, factor: f64) -> Result<(), PlanError> {
        let measured = measured.scaled(1.0 / factor)?;
        let mut learning = self.lock();
        learning.profile = measured.clone();
        learning.measured = measured;
        drop(learning);
        self.rebuild();
        Ok(())
    }

    /// Learns from `run` if it had no neighbours, and updates the plans. The machine now takes
    /// `factor` times as long as when it was profiled. Calls `hear` with each module that
    /// was learned, and the ratio between its current and its profiled latency. Returns the time
    /// that the modules of `run` were known to take.
    pub(crate) fn learn(
        &self,
        run: &Run<'_>,
        factor: f64,
        hear: &dyn Fn(ModuleId, f64),
    ) -> Duration {
        let Shape { batch, tokens } = run.shape;
        let mut learning = self.lock();
        let Learning { profile, measured, moved, .. } = &mut *learning;
        let mut known = 0.0;
        for (id, time) in run.times {
            let Some((grid, measured)) = profile.latency_mut(*id).zip(measured.module(*id)) else {
                continue;
            };
            let before = grid.at(batch, tokens);
            known += before;
            if run.is_alone && before > 0.0 {
                let ratio = time.as_secs_f64() / (before * factor);
                let profiled = measured.latency_seconds.at(batch, tokens);
                let back = (profiled / before).powf(PULL);
                let moves = step(ratio, RATE) * back;
                grid.bend(run.shape, moves, &measured.latency_seconds, MOST);
                moved[id.0] += moves.ln();
                hear(*id, factor * grid.at(batch, tokens) / profiled);
            }
        }
        drop(learning);
        self.update_plans(run.ended);
        Duration::from_secs_f64(known)
    }

    /// Updates the plans' latencies if a module's has changed enough and the last update is old
    /// enough.
    fn update_plans(&self, now: Instant) {
        let mut learning = self.lock();
        let is_notable = learning.moved.iter().any(|moved| moved.abs() > NOTABLE);
        let updated = *learning.updated.get_or_insert(now);
        if !is_notable || now.saturating_duration_since(updated) < INTERVAL {
            return;
        }
        learning.updated = Some(now);
        drop(learning);
        self.rebuild();
    }

    /// Gives the plans the latencies of their modules.
    fn rebuild(&self) {
        let mut learning = self.lock();
        learning.moved.fill(0.0);
        let profile = learning.profile.clone();
        drop(learning);
        let latency = |plan: &Plan| profile.latency_of(plan.path.iter().copied()).ok();
        let tables = self.tables();
        let alike = tables.alike.iter();
        let tables = Tables {
            all: tables.all.with_latencies(latency),
            alike: alike.map(|(key, table)| (key.clone(), table.with_latencies(latency))).collect(),
        };
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tables);
    }
}

/// Returns the seconds at `shape` of the plan that `table` chooses for `budget`.
pub(crate) fn seconds_of(table: &PlanTable, shape: Shape, budget: &Budget) -> Option<f64> {
    let choice = table.choose(shape, budget).ok()?;
    Some(choice.entry.latency_seconds_at(shape))
}

/// Cache of the seconds that the fastest plans take, on a machine as fast as when it was profiled.
#[derive(Debug)]
struct Fastest<T> {
    known: Mutex<Known<T>>,
}

#[derive(Debug)]
struct Known<T> {
    /// Tables of the plans whose latencies are in the cache.
    tables: Option<Arc<T>>,
    /// Seconds of the fastest plan, or `None` if no plan meets the budget.
    seconds: HashMap<Key, Option<f64>>,
}

impl<T> Default for Fastest<T> {
    fn default() -> Self {
        Self { known: Mutex::new(Known { tables: None, seconds: HashMap::new() }) }
    }
}

impl<T> Fastest<T> {
    /// Returns the seconds that the fastest plan of `tables` within `budget` takes at `shape`, or
    /// `None` if no plan meets `budget`. Calls `find` if the cache lacks the answer. Ignores the
    /// latency and the plan of `budget`.
    fn seconds(
        &self,
        tables: &Arc<T>,
        shape: Shape,
        budget: &Budget,
        find: impl FnOnce() -> Option<f64>,
    ) -> Option<f64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = known.tables.as_ref().is_some_and(|known| Arc::ptr_eq(known, tables));
        if !is_same || known.seconds.len() >= MAX_CACHED {
            *known = Known { tables: Some(tables.clone()), seconds: HashMap::new() };
        }
        let key = (shape, budget.memory_bytes, budget.min_quality.map(f64::to_bits));
        *known.seconds.entry(key).or_insert_with(find)
    }
}

#[cfg(test)]
#[path = "learned_tests.rs"]
mod tests;
