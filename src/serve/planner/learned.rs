//! Costs of a family's modules as learned while they serve, and the resulting costs of its plans.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::follow::step;
use crate::{
    family::ModuleId,
    offer::Profile,
    plan::{PlanTable, Shape},
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
}

#[derive(Debug)]
struct Learning {
    profile: Profile,
    /// Change of each module's latency since the last update of the plans, as a logarithm.
    moved: Vec<f64>,
    updated: Option<Instant>,
}

/// Tables of the plans with their current latencies.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Table of all plans.
    pub(crate) all: PlanTable,
    /// Tables of the plans that read the same tokens, by tokenizer.
    alike: BTreeMap<Option<PathBuf>, PlanTable>,
}

impl Tables {
    /// Returns the plans that read the same tokens as `path`, or `None` if no plan does.
    pub(crate) fn alike(&self, loaded: &LoadedFamily, path: &[ModuleId]) -> Option<&PlanTable> {
        let tokenizer = loaded.tokenizer(path);
        self.alike.iter().find(|(known, _)| known.as_deref() == tokenizer).map(|(_, table)| table)
    }
}

impl Learned {
    /// Creates the latencies of `loaded` as profiled.
    pub(crate) fn new(loaded: &LoadedFamily) -> Self {
        let profile = loaded.profile.clone();
        let moved = vec![0.0; loaded.family.graph.modules().len()];
        let learning = Mutex::new(Learning { profile, moved, updated: None });
        let tables = Tables { all: loaded.table.clone(), alike: loaded.alike.clone() };
        Self { learning, tables: RwLock::new(Arc::new(tables)) }
    }

    fn lock(&self) -> MutexGuard<'_, Learning> {
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the tables of the plans with their current latencies.
    pub(crate) fn tables(&self) -> Arc<Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls `read` with the learned latencies and returns its result.
    pub(crate) fn with_profile<T>(&self, read: impl FnOnce(&Profile) -> T) -> T {
        read(&self.lock().profile)
    }

    /// Returns the time that the modules of `times` are known to take at `shape`.
    pub(crate) fn known(&self, shape: Shape, times: &[(ModuleId, Duration)]) -> Duration {
        let learning = self.lock();
        let grids = times.iter().filter_map(|(id, _)| learning.profile.module(*id));
        Duration::from_secs_f64(
            grids.map(|module| module.latency_seconds.at(shape.batch, shape.tokens)).sum(),
        )
    }

    /// Learns from `run`, a batch without neighbours. The machine now takes `factor` times as long
    /// as when `measured` was profiled. Calls `hear` with each module and the ratio between its
    /// current and its profiled latency.
    pub(crate) fn learn(
        &self,
        measured: &Profile,
        run: &Run<'_>,
        factor: f64,
        hear: &dyn Fn(ModuleId, f64),
    ) {
        let Shape { batch, tokens } = run.shape;
        let mut learning = self.lock();
        let Learning { profile, moved, .. } = &mut *learning;
        for (id, time) in run.times {
            let Some((grid, measured)) = profile.latency_mut(*id).zip(measured.module(*id)) else {
                continue;
            };
            let before = grid.at(batch, tokens);
            if before > 0.0 {
                let ratio = time.as_secs_f64() / (before * factor);
                let profiled = measured.latency_seconds.at(batch, tokens);
                let back = (profiled / before).powf(PULL);
                let moves = step(ratio, RATE) * back;
                grid.bend(run.shape, moves, &measured.latency_seconds, MOST);
                moved[id.0] += moves.ln();
                hear(*id, factor * grid.at(batch, tokens) / profiled);
            }
        }
    }

    /// Updates the plans' latencies if a module's has changed enough and the last update is old
    /// enough.
    pub(crate) fn update_plans(&self, now: Instant) {
        let mut learning = self.lock();
        let is_notable = learning.moved.iter().any(|moved| moved.abs() > NOTABLE);
        let updated = *learning.updated.get_or_insert(now);
        if !is_notable || now.saturating_duration_since(updated) < INTERVAL {
            return;
        }
        learning.updated = Some(now);
        learning.moved.fill(0.0);
        let profile = learning.profile.clone();
        drop(learning);
        let latency = |path: &[usize]| profile.latency_of(path.iter().copied().map(ModuleId)).ok();
        let tables = self.tables();
        let alike = tables.alike.iter();
        let tables = Tables {
            all: tables.all.with_latencies(latency),
            alike: alike.map(|(key, table)| (key.clone(), table.with_latencies(latency))).collect(),
        };
        *self.tables.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tables);
    }
}
