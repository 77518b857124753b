//! What a family's modules are found to cost while they serve, and what its plans cost then.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::{LoadedFamily, follow::step};
use crate::{family::ModuleId, fit::Profile, plan::PlanTable};

/// How far a module's latency at a shape moves towards what one batch took: slowly, beside the
/// factor of all modules, which is the first to follow what they have in common.
const RATE: f64 = 0.02;

/// How far it moves back to what was profiled at the same time, so that what modules have in common
/// ends in the factor, which holds for those that have not run as well.
const PULL: f64 = 0.002;

/// Largest ratio between what a module is found to take and what was profiled, either way.
const MOST: f64 = 4.0;

/// Plans get new latencies when a module has moved by so much, as a logarithm, but not more often
/// than this.
const NOTABLE: f64 = 0.01;
const INTERVAL: Duration = Duration::from_millis(250);

/// A batch that ran.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// Its rows and their tokens.
    pub(super) shape: (usize, usize),
    /// Time that each module took.
    pub(super) times: &'a [(ModuleId, Duration)],
    /// Time that all of it took.
    pub(super) whole: Duration,
    /// Whether nothing else ran, waited or arrived meanwhile.
    pub(super) is_alone: bool,
}

/// The latencies of a family's modules, by batch and length, as they are found to be on a machine
/// that is as fast as it was when they were profiled; how fast it is now is the [`Correction`]'s.
///
/// [`Correction`]: super::correction::Correction
#[derive(Debug)]
pub(super) struct Learned {
    learning: Mutex<Learning>,
    tables: RwLock<Arc<Tables>>,
}

#[derive(Debug)]
struct Learning {
    profile: Profile,
    /// By how much each module has moved since the plans were told.
    moved: Vec<f64>,
    told: Instant,
}

/// The plans, as they cost now.
#[derive(Debug)]
pub(super) struct Tables {
    /// All plans.
    pub(super) all: PlanTable,
    /// Those that read the same tokens, by tokenizer.
    alike: BTreeMap<Option<PathBuf>, PlanTable>,
}

impl Tables {
    /// Returns the plans that read the same tokens as `path` does.
    pub(super) fn alike(&self, loaded: &LoadedFamily, path: &[ModuleId]) -> Option<&PlanTable> {
        let tokenizer = loaded.tokenizer(path);
        self.alike.iter().find(|(known, _)| known.as_deref() == tokenizer).map(|(_, table)| table)
    }
}

impl Learned {
    /// Nothing is learned yet.
    pub(super) fn new(loaded: &LoadedFamily) -> Self {
        let profile = loaded.profile.clone();
        let moved = vec![0.0; loaded.family.graph.modules().len()];
        let learning = Mutex::new(Learning { profile, moved, told: Instant::now() });
        let tables = Tables { all: loaded.table.clone(), alike: loaded.alike.clone() };
        Self { learning, tables: RwLock::new(Arc::new(tables)) }
    }

    fn lock(&self) -> MutexGuard<'_, Learning> {
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the plans as they cost now.
    pub(super) fn tables(&self) -> Arc<Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lends what modules are found to cost.
    pub(super) fn with_profile<T>(&self, read: impl FnOnce(&Profile) -> T) -> T {
        read(&self.lock().profile)
    }

    /// Returns the time that a batch's modules are known to take.
    pub(super) fn known(&self, shape: (usize, usize), times: &[(ModuleId, Duration)]) -> Duration {
        let learning = self.lock();
        let grids = times.iter().filter_map(|(id, _)| learning.profile.module(*id));
        Duration::from_secs_f64(
            grids.map(|module| module.latency_seconds.at(shape.0, shape.1)).sum(),
        )
    }

    /// Learns from a batch without neighbours, on a machine that takes `factor` times as long as
    /// when modules were profiled. `hear` is called with the ratio between what each module takes
    /// now and what was profiled.
    pub(super) fn learn(
        &self,
        measured: &Profile,
        run: &Run<'_>,
        (factor, hear): (f64, &dyn Fn(ModuleId, f64)),
    ) {
        let (batch, tokens) = run.shape;
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
                grid.bend(run.shape, moves, (&measured.latency_seconds, MOST));
                moved[id.0] += moves.ln();
                hear(*id, factor * grid.at(batch, tokens) / profiled);
            }
        }
    }

    /// Gives plans the latencies that follow from what was learned, where it is worth it.
    pub(super) fn tell(&self) {
        let mut learning = self.lock();
        let is_notable = learning.moved.iter().any(|moved| moved.abs() > NOTABLE);
        if !is_notable || learning.told.elapsed() < INTERVAL {
            return;
        }
        learning.told = Instant::now();
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
