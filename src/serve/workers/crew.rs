//! State that the inference threads share: the families they run and the modules to load ahead.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    family::ModuleId,
    runtime::{Executor, Residency},
    serve::{
        admission::job::{FamilyKey, Task},
        observe::Observer,
    },
};

/// Families that all threads run.
pub(super) struct Crew {
    families: Mutex<Families>,
    pub(super) observer: Arc<dyn Observer>,
}

#[derive(Default)]
struct Families {
    executors: HashMap<FamilyKey, Arc<Executor>>,
    /// Loads and evictions of removed families, by the family's name.
    past: HashMap<String, Residency>,
    preload: VecDeque<(FamilyKey, ModuleId)>,
}

impl Crew {
    /// Creates a crew without families.
    pub(super) fn new(observer: Arc<dyn Observer>) -> Self {
        Self { families: Mutex::default(), observer }
    }

    fn lock(&self) -> MutexGuard<'_, Families> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the executor of `family`, or `None` if the crew does not run it.
    pub(super) fn executor(&self, family: FamilyKey) -> Option<Arc<Executor>> {
        self.lock().executors.get(&family).cloned()
    }

    /// Installs or removes a family.
    pub(super) fn perform(&self, task: Task) {
        match task {
            Task::Install { family, executor, preload } => {
                let mut families = self.lock();
                families.executors.insert(family, executor);
                families.preload.extend(preload.into_iter().map(|module| (family, module)));
            }
            Task::Remove(family) => self.remove(family),
        }
    }

    fn remove(&self, family: FamilyKey) {
        let mut families = self.lock();
        families.preload.retain(|(key, _)| *key != family);
        let Some(executor) = families.executors.remove(&family) else {
            return;
        };
        let name = executor.family().manifest.name.clone();
        let last = executor.residency();
        let past = families.past.entry(name).or_default();
        past.num_loads += last.num_loads;
        past.num_evictions += last.num_evictions;
        drop(families);
        // The executor's sessions are released once no other thread runs its last jobs.
        drop(executor);
        self.report_residency();
    }

    /// Returns whether no module is left to load ahead.
    pub(super) fn is_loaded(&self) -> bool {
        self.lock().preload.is_empty()
    }

    /// Loads the next module ahead of its use. If there is no room for it, no other module is
    /// tried.
    pub(super) fn load_next(&self) {
        let mut families = self.lock();
        let Some((family, module)) = families.preload.pop_front() else {
            return;
        };
        let executor = families.executors.get(&family).cloned();
        drop(families);
        let Some(executor) = executor else {
            return;
        };
        match executor.load_ahead(module) {
            Ok(true) => {}
            Ok(false) => self.lock().preload.clear(),
            Err(error) => tracing::warn!(%error, "a module cannot be loaded ahead of its use"),
        }
        self.report_residency();
    }

    /// Reports the residency of each family, summed over its versions, to the observer. A new
    /// version may have replaced an older one.
    pub(super) fn report_residency(&self) {
        let families = self.lock();
        let mut sums = families.past.clone();
        for executor in families.executors.values() {
            let sum = sums.entry(executor.family().manifest.name.clone()).or_default();
            let own = executor.residency();
            sum.num_modules += own.num_modules;
            sum.weight_bytes += own.weight_bytes;
            sum.num_loads += own.num_loads;
            sum.num_evictions += own.num_evictions;
        }
        for (name, sum) in &sums {
            self.observer.residency_changed(name, sum);
        }
    }
}
