//! State that the inference threads share: the families they run and the modules to load ahead.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    family::ModuleId,
    runtime::{Executor, Residency},
    serve::{
        admission::{
            job::{FamilyKey, Task},
            queue::Patience,
        },
        generation::Generator,
        observe::Observer,
        workers::idle::Idle,
    },
    tensor::give_back_freed_memory,
};

/// Families that all threads run.
pub(super) struct Crew {
    families: Mutex<Families>,
    pub(super) observer: Arc<dyn Observer>,
}

#[derive(Default)]
struct Families {
    executors: HashMap<FamilyKey, Arc<Executor>>,
    /// Generators of the families that generate.
    generators: BTreeMap<FamilyKey, Arc<Generator>>,
    /// Key of the family whose generator ran a step last.
    last: Option<FamilyKey>,
    /// Loads and evictions of removed families, by the family's name.
    past: HashMap<String, Residency>,
    preload: VecDeque<(FamilyKey, ModuleId)>,
    /// Work for when there is nothing else to do.
    idle: VecDeque<(FamilyKey, Idle)>,
    /// Whether a family was loaded or removed whose freed memory the process still holds.
    has_freed: bool,
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

    /// Installs or removes a family, or adds work for one.
    pub(super) fn perform(&self, task: Task) {
        match task {
            Task::Install { family, executor } => {
                self.lock().executors.insert(family, executor);
            }
            Task::Ahead { family, preload, idle } => {
                let mut families = self.lock();
                // It may have been removed in the meantime.
                if families.executors.contains_key(&family) {
                    // Loading leaves graphs and copies of weights behind.
                    families.has_freed = true;
                    families.idle.extend(idle.map(|idle| (family, idle)));
                    families.preload.extend(preload.into_iter().map(|module| (family, module)));
                }
            }
            Task::Remove(family) => self.remove(family),
            Task::Generate(family, generator) => {
                let mut families = self.lock();
                if families.executors.contains_key(&family) {
                    families.generators.insert(family, generator);
                }
            }
        }
    }

    fn remove(&self, family: FamilyKey) {
        let mut families = self.lock();
        families.preload.retain(|(key, _)| *key != family);
        families.idle.retain(|(key, _)| *key != family);
        let generator = families.generators.remove(&family);
        let Some(executor) = families.executors.remove(&family) else {
            return;
        };
        families.has_freed = true;
        let name = executor.family().manifest.name.clone();
        let last = executor.residency();
        let past = families.past.entry(name).or_default();
        past.num_loads += last.num_loads;
        past.num_evictions += last.num_evictions;
        drop(families);
        if let Some(generator) = generator {
            generator.leave(&*self.observer);
        }
        // The executor's sessions are released once no other thread runs its last jobs.
        drop(executor);
        self.report_residency();
    }

    /// Returns the next generator of which a step is due; they take turns.
    pub(super) fn next_generator(&self) -> Option<Arc<Generator>> {
        let mut families = self.lock();
        let last = families.last;
        let due = families.generators.iter().filter(|(_, generator)| generator.is_due());
        let rank = |(key, _): &(&FamilyKey, &Arc<Generator>)| (last >= Some(**key), **key);
        let next = due.min_by_key(rank).map(|(key, generator)| (*key, generator.clone()));
        let (key, generator) = next?;
        families.last = Some(key);
        Some(generator)
    }

    /// Returns how long a thread may wait for work: not while a step is due. Where modules are left
    /// to load ahead, or there is something to measure or memory to give back, it waits until it
    /// was quiet for a while. A request waits for what has begun, so nothing begins between the
    /// requests of one client.
    pub(super) fn patience(&self) -> Patience {
        let families = self.lock();
        if families.generators.values().any(|generator| generator.is_due()) {
            return Patience::None;
        }
        match (families.preload.is_empty(), families.idle.is_empty() && !families.has_freed) {
            (false, _) => Patience::Busy,
            (true, false) => Patience::Quiet,
            (true, true) => Patience::Endless,
        }
    }

    /// Does what is left to do while there is no work: loads a module, or else gives memory back,
    /// or else measures a little.
    pub(super) fn use_time(&self, is_quiet: &dyn Fn() -> bool) {
        match self.patience() {
            Patience::Busy => self.load_next(),
            Patience::Quiet if std::mem::take(&mut self.lock().has_freed) => {
                // All threads allocate more slowly meanwhile, so it waits for a quiet moment.
                give_back_freed_memory();
            }
            Patience::Quiet => self.measure_next(is_quiet),
            Patience::None | Patience::Endless => {}
        }
    }

    /// Goes on with the measurements of one family.
    fn measure_next(&self, is_quiet: &dyn Fn() -> bool) {
        let Some((family, mut idle)) = self.lock().idle.pop_front() else {
            return;
        };
        let Some(executor) = self.executor(family) else {
            return;
        };
        let before = executor.residency();
        if idle.turn(&executor, is_quiet) {
            let mut families = self.lock();
            if families.executors.contains_key(&family) {
                families.idle.push_front((family, idle));
            }
        }
        if executor.residency() != before {
            self.report_residency();
        }
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::serve::{
        idle::{IdleTurn, IdleWork},
        planner::Planner,
        support_tests::{CHEAP, Runs, running, small},
    };

    const ONE: FamilyKey = FamilyKey(1);
    const TWO: FamilyKey = FamilyKey(2);

    fn crew() -> (Crew, Arc<Runs>) {
        let runs = Arc::new(Runs::default());
        (Crew::new(runs.clone()), runs)
    }

    /// Installs `executor`, and has the first `num_ahead` modules of the cheap plan loaded ahead.
    fn install(crew: &Crew, family: FamilyKey, executor: &Arc<Executor>, num_ahead: usize) {
        crew.perform(Task::Install { family, executor: executor.clone() });
        crew.perform(ahead(family, executor, num_ahead));
    }

    /// Returns a task that loads the first `num_ahead` modules of the cheap plan ahead.
    fn ahead(family: FamilyKey, executor: &Executor, num_ahead: usize) -> Task {
        let graph = &executor.family().graph;
        let path = crate::family::PlanId::parse(graph, CHEAP).expect("a plan").path;
        Task::Ahead { family, preload: path[..num_ahead].to_vec(), idle: None }
    }

    fn is_loaded(crew: &Crew) -> bool {
        crew.patience() != Patience::Busy
    }

    #[test]
    fn a_family_runs_from_its_installation_to_its_removal() {
        let (crew, _) = crew();
        let (_planner, executor) = running();
        assert!(crew.executor(ONE).is_none());
        install(&crew, ONE, &executor, 0);
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
        assert!(is_loaded(&crew));
        install(&crew, ONE, &executor, 2);
        for num_modules in [1, 2] {
            assert!(!is_loaded(&crew));
            crew.load_next();
            assert_eq!(runs.residency().num_modules, num_modules);
        }
        assert!(is_loaded(&crew));
        crew.load_next();
        assert_eq!(runs.residency().num_loads, 2, "nothing was left to load");
    }

    #[test]
    fn modules_of_a_removed_family_are_not_loaded() {
        let (crew, runs) = crew();
        let ((_, first), (_, second)) = (running(), running());
        install(&crew, ONE, &first, 2);
        install(&crew, TWO, &second, 1);
        crew.perform(Task::Remove(ONE));
        crew.load_next();
        assert!(is_loaded(&crew));
        assert_eq!((first.residency().num_loads, second.residency().num_loads), (0, 1));
        assert_eq!(runs.residency().num_loads, 1);
    }

    #[test]
    fn work_for_a_family_that_is_gone_is_dropped() {
        let (crew, _) = crew();
        let (_planner, executor) = running();
        crew.perform(ahead(ONE, &executor, 2));
        assert!(is_loaded(&crew), "nothing is to be loaded");
    }

    #[test]
    fn without_room_for_a_module_no_other_is_tried() {
        let (crew, runs) = crew();
        let (_planner, executor) = running();
        let full = executor.runtime().apart(Some(1));
        let full = Arc::new(Executor::new(full, executor.family().clone()));
        install(&crew, ONE, &full, 3);
        crew.load_next();
        assert!(is_loaded(&crew), "the others would not fit either");
        assert_eq!(runs.residency(), Residency::default());
    }

    /// Work of three turns, which counts those after which it was quiet.
    #[derive(Debug, Default)]
    struct ThreeTurns {
        num_turns: usize,
        num_quiet: Arc<AtomicUsize>,
    }

    impl IdleWork for ThreeTurns {
        fn turn(&mut self, _: &Executor, is_quiet: &dyn Fn() -> bool) -> IdleTurn {
            assert!(self.num_turns < 3, "the work is done");
            self.num_turns += 1;
            self.num_quiet.fetch_add(usize::from(is_quiet()), Ordering::Relaxed);
            match self.num_turns {
                3 => IdleTurn::Done(Box::new(small().profile)),
                _ => IdleTurn::More,
            }
        }
    }

    fn install_idle(
        crew: &Crew,
        planner: &Arc<Planner>,
        executor: &Arc<Executor>,
    ) -> Arc<AtomicUsize> {
        let work = Box::<ThreeTurns>::default();
        let num_quiet = work.num_quiet.clone();
        let idle = Some(Idle { work, planner: Arc::downgrade(planner) });
        install(crew, ONE, executor, 1);
        crew.perform(Task::Ahead { family: ONE, preload: Vec::new(), idle });
        num_quiet
    }

    #[test]
    fn measuring_goes_on_after_all_modules_are_loaded_until_it_is_done() {
        let (crew, _) = crew();
        let (planner, executor) = running();
        let num_quiet = install_idle(&crew, &planner, &executor);
        assert_eq!(crew.patience(), Patience::Busy);
        crew.use_time(&|| true);
        assert_eq!(crew.patience(), Patience::Quiet, "memory is to be given back");
        crew.use_time(&|| true);
        for is_quiet in [true, false, true] {
            assert_eq!(crew.patience(), Patience::Quiet);
            crew.use_time(&|| is_quiet);
        }
        assert_eq!(crew.patience(), Patience::Endless);
        assert_eq!(num_quiet.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn measuring_ends_with_its_family() {
        let (crew, _) = crew();
        let (planner, executor) = running();
        install_idle(&crew, &planner, &executor);
        crew.perform(Task::Remove(ONE));
        assert_eq!(crew.patience(), Patience::Quiet, "memory is to be given back");
        crew.use_time(&|| true);
        assert_eq!(crew.patience(), Patience::Endless);
        let num_quiet = install_idle(&crew, &planner, &executor);
        drop(planner);
        (0..5).for_each(|_| crew.use_time(&|| true));
        assert_eq!(num_quiet.load(Ordering::Relaxed), 0, "nobody would get the costs");
    }

    #[test]
    fn versions_of_a_family_are_reported_as_one_and_their_loads_are_remembered() {
        let (crew, runs) = crew();
        let ((_, old), (_, new)) = (running(), running());
        install(&crew, ONE, &old, 2);
        install(&crew, TWO, &new, 1);
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
