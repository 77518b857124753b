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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::support_tests::{CHEAP, Runs, running};

    const ONE: FamilyKey = FamilyKey(1);
    const TWO: FamilyKey = FamilyKey(2);

    fn crew() -> (Crew, Arc<Runs>) {
        let runs = Arc::new(Runs::default());
        (Crew::new(runs.clone()), runs)
    }

    /// Returns a task that installs `executor`, and loads the first `num_ahead` modules of the
    /// cheap plan ahead.
    fn install(family: FamilyKey, executor: &Arc<Executor>, num_ahead: usize) -> Task {
        let graph = &executor.family().graph;
        let path = crate::family::PlanId::parse(graph, CHEAP).expect("a plan").path;
        let preload = path[..num_ahead].to_vec();
        Task::Install { family, executor: executor.clone(), preload }
    }

    #[test]
    fn a_family_runs_from_its_installation_to_its_removal() {
        let (crew, _) = crew();
        let (_planner, executor) = running();
        assert!(crew.executor(ONE).is_none());
        crew.perform(install(ONE, &executor, 0));
        assert!(crew.executor(ONE).is_some_and(|found| Arc::ptr_eq(&found, &executor)));
        crew.perform(Task::Remove(TWO));
        assert!(crew.executor(ONE).is_some(), "another one was removed");
        crew.perform(Task::Remove(ONE));
        assert!(crew.executor(ONE).is_none());
        assert_eq!(Arc::strong_count(&executor), 1, "its sessions can be released");
    }

    #[test]
    fn modules_are_loaded_ahead_one_by_one_and_reported() {
        let (crew, runs) = crew();
        let (_planner, executor) = running();
        assert!(crew.is_loaded());
        crew.perform(install(ONE, &executor, 2));
        for num_modules in [1, 2] {
            assert!(!crew.is_loaded());
            crew.load_next();
            assert_eq!(runs.residency().num_modules, num_modules);
        }
        assert!(crew.is_loaded());
        crew.load_next();
        assert_eq!(runs.residency().num_loads, 2, "nothing was left to load");
    }

    #[test]
    fn modules_of_a_removed_family_are_not_loaded() {
        let (crew, runs) = crew();
        let ((_, first), (_, second)) = (running(), running());
        crew.perform(install(ONE, &first, 2));
        crew.perform(install(TWO, &second, 1));
        crew.perform(Task::Remove(ONE));
        crew.load_next();
        assert!(crew.is_loaded());
        assert_eq!((first.residency().num_loads, second.residency().num_loads), (0, 1));
        assert_eq!(runs.residency().num_loads, 1);
    }

    #[test]
    fn without_room_for_a_module_no_other_is_tried() {
        let (crew, runs) = crew();
        let (_planner, executor) = running();
        let full = executor.runtime().apart(Some(1));
        let full = Arc::new(Executor::new(full, executor.family().clone()));
        crew.perform(install(ONE, &full, 3));
        crew.load_next();
        assert!(crew.is_loaded(), "the others would not fit either");
        assert_eq!(runs.residency(), Residency::default());
    }

    #[test]
    fn versions_of_a_family_are_reported_as_one_and_their_loads_are_remembered() {
        let (crew, runs) = crew();
        let ((_, old), (_, new)) = (running(), running());
        crew.perform(install(ONE, &old, 2));
        crew.perform(install(TWO, &new, 1));
        (0..3).for_each(|_| crew.load_next());
        let both = runs.residency();
        assert_eq!((both.num_modules, both.num_loads), (3, 3));
        crew.perform(Task::Remove(ONE));
        let left = runs.residency();
        assert_eq!((left.num_modules, left.num_loads), (1, 3));
        assert_eq!(left.weight_bytes, new.residency().weight_bytes);
        crew.perform(Task::Remove(TWO));
        let none = runs.residency();
        assert_eq!((none.num_modules, none.weight_bytes, none.num_loads), (0, 0, 3));
    }
}
