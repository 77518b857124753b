//! Tests of the latencies that modules are found to have.

use std::cell::RefCell;

use super::*;
use crate::serve::support_tests::loaded;

const ONE: Shape = Shape::new(1, 1);
const TICK: Duration = Duration::from_millis(1);

/// Latencies of a family, and what the tests need to teach them.
struct School {
    loaded: LoadedFamily,
    learned: Learned,
    /// Modules of the fastest plan that take time.
    modules: Vec<ModuleId>,
    start: Instant,
}

impl School {
    fn new() -> Self {
        let loaded = loaded();
        let learned = Learned::new(&loaded);
        let choice = loaded.table.choose(ONE, &Budget::default().fastest()).expect("a plan");
        let modules = choice.entry.plan.path.iter().copied();
        let modules = modules.filter(|id| loaded.profile.module(*id).is_some()).collect();
        Self { loaded, learned, modules, start: Instant::now() }
    }

    /// Returns the profiled seconds of `module` for one image.
    fn profiled(&self, module: ModuleId) -> f64 {
        self.loaded.profile.module(module).expect("it takes time").latency_seconds.at(1, 1)
    }

    /// Returns the ratio between the learned and the profiled latency of `module`.
    fn ratio(&self, module: ModuleId) -> f64 {
        let seconds = self.learned.with_profile(|profile| {
            profile.module(module).expect("it takes time").latency_seconds.at(1, 1)
        });
        seconds / self.profiled(module)
    }

    /// Teaches that each of `modules` took `ratio` times its profiled latency in a batch that
    /// ended `after` the start. Returns the time that they were known to take.
    fn teach(&self, modules: &[ModuleId], ratio: f64, after: Duration) -> Duration {
        self.teach_beside(modules, ratio, after, true)
    }

    fn teach_beside(
        &self,
        modules: &[ModuleId],
        ratio: f64,
        after: Duration,
        is_alone: bool,
    ) -> Duration {
        let time = |id: &ModuleId| Duration::from_secs_f64(self.profiled(*id) * ratio);
        let times: Vec<_> = modules.iter().map(|id| (*id, time(id))).collect();
        let whole = times.iter().map(|(_, time)| *time).sum();
        let ended = self.start + after;
        let run = Run { shape: ONE, times: &times, whole, is_alone, ended };
        self.learned.learn(&run, 1.0, &|_, _| ())
    }
}

fn is_near(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 1e-3
}

#[test]
fn a_module_learns_from_a_batch_alone_only() {
    let school = School::new();
    let module = school.modules[0];
    school.teach_beside(&[module], 2.0, TICK, false);
    assert_eq!(school.ratio(module).to_bits(), 1.0_f64.to_bits(), "others ran beside it");
    school.teach(&[module], 2.0, TICK);
    assert!(is_near(school.ratio(module), 2.0_f64.powf(RATE)), "{}", school.ratio(module));
    for other in &school.modules[1..] {
        assert_eq!(school.ratio(*other).to_bits(), 1.0_f64.to_bits(), "it has not run");
    }
}

#[test]
fn the_time_that_a_batch_was_known_to_take_is_that_of_its_modules() {
    let school = School::new();
    let profiled: f64 = school.modules.iter().map(|id| school.profiled(*id)).sum();
    let known = school.teach(&school.modules, 3.0, TICK).as_secs_f64();
    assert!(is_near(known, profiled), "before the lesson: {known} of {profiled}");
    let known = school.teach(&school.modules, 3.0, TICK).as_secs_f64();
    assert!(is_near(known, profiled * 2.0_f64.powf(RATE)), "after it: {known} of {profiled}");
}

#[test]
fn measured_costs_replace_what_was_profiled_and_learned() {
    let school = School::new();
    let module = school.modules[0];
    school.teach(&[module], 2.0, TICK);
    let before = school.learned.fastest_seconds(ONE, &Budget::default()).expect("a plan");
    let measured = school.loaded.profile.scaled(6.0).expect("costs");
    school.learned.replace(&measured, 2.0).expect("costs");
    assert!(school.modules.iter().all(|module| is_near(school.ratio(*module), 3.0)));
    let after = school.learned.fastest_seconds(ONE, &Budget::default()).expect("a plan");
    assert!(after > 2.5 * before, "plans are as fast as their modules: {before} {after}");
    // Lessons stay near what was measured now.
    (1..2_000).for_each(|tick| {
        school.teach(&[module], 1_000.0, tick * TICK);
    });
    assert!(is_near(school.ratio(module), 3.0 * MOST), "{}", school.ratio(module));
}

#[test]
fn what_the_machine_s_speed_explains_is_no_lesson() {
    let school = School::new();
    let module = school.modules[0];
    let time = Duration::from_secs_f64(3.0 * school.profiled(module));
    let (times, heard) = ([(module, time)], RefCell::new(Vec::new()));
    let hear = |id, ratio| heard.borrow_mut().push((id, ratio));
    let run = Run { shape: ONE, times: &times, whole: time, is_alone: true, ended: school.start };
    school.learned.learn(&run, 3.0, &hear);
    assert!(is_near(school.ratio(module), 1.0), "{}", school.ratio(module));
    let [(id, ratio)] = heard.into_inner()[..] else { panic!("one module is heard of") };
    assert!(id == module && is_near(ratio, 3.0), "it takes three times as long now: {ratio}");
}

#[test]
fn a_module_stays_within_a_factor_of_what_was_profiled() {
    let school = School::new();
    let module = school.modules[0];
    for (ratio, bound) in [(100.0, MOST), (0.001, 1.0 / MOST)] {
        (0..500).for_each(|_| {
            school.teach(&[module], ratio, TICK);
        });
        assert!(is_near(school.ratio(module), bound), "{}", school.ratio(module));
    }
}

#[test]
fn a_module_returns_towards_what_was_profiled() {
    let school = School::new();
    let module = school.modules[0];
    (0..50).for_each(|_| {
        school.teach(&[module], 100.0, TICK);
    });
    let before = school.ratio(module);
    assert!(before > 1.5, "{before}");
    // It takes as long as is known, so that only the pull moves it.
    for lessons in 1..=100 {
        school.teach(&[module], school.ratio(module), TICK);
        let expected = before.powf((1.0 - PULL).powi(lessons));
        assert!(is_near(school.ratio(module), expected), "{lessons}: {}", school.ratio(module));
    }
}

#[test]
fn plans_get_new_latencies_at_most_once_an_interval() {
    let school = School::new();
    let tables = || school.learned.tables();
    let profiled = tables();
    let teach = |after| school.teach(&school.modules, 4.0, after);
    teach(Duration::ZERO);
    teach(INTERVAL - TICK);
    assert!(Arc::ptr_eq(&profiled, &tables()), "the first interval has not passed");
    teach(INTERVAL);
    let first = tables();
    assert!(!Arc::ptr_eq(&profiled, &first), "it has passed");
    teach(2 * INTERVAL - TICK);
    assert!(Arc::ptr_eq(&first, &tables()), "the second interval has not passed");
    teach(2 * INTERVAL);
    assert!(!Arc::ptr_eq(&first, &tables()));
}

#[test]
fn plans_keep_their_latencies_while_no_module_has_changed_notably() {
    let school = School::new();
    let before = school.learned.tables();
    // Each lesson moves a module by 0.02 · ln 1.3 = 0.5 %, less than is notable.
    school.teach(&school.modules, 1.3, TICK);
    school.teach(&[], 1.0, 9 * INTERVAL);
    assert!(Arc::ptr_eq(&before, &school.learned.tables()));
    school.teach(&school.modules, 1.3, 10 * INTERVAL);
    assert!(!Arc::ptr_eq(&before, &school.learned.tables()), "two lessons move it by 1 %");
}

#[test]
fn plans_cost_what_their_modules_were_found_to_cost() {
    let school = School::new();
    let fastest = Budget::default().fastest();
    let seconds = || school.learned.fastest_seconds(ONE, &fastest).expect("a plan");
    let before = seconds();
    let all: Vec<ModuleId> = (0..school.loaded.family.graph.modules().len())
        .map(ModuleId)
        .filter(|id| school.loaded.profile.module(*id).is_some())
        .collect();
    (0..20).for_each(|_| {
        school.teach(&all, 100.0, TICK);
    });
    assert_eq!(seconds().to_bits(), before.to_bits(), "plans are not updated yet");
    school.teach(&[], 1.0, TICK + INTERVAL);
    let ratio = school.ratio(all[0]);
    assert!(ratio > 1.2 && is_near(seconds(), before * ratio), "{before} {}", seconds());
    let entry = &school.loaded.table.entries()[0];
    let tables = school.learned.tables();
    let alike = tables.alike(&school.loaded, &entry.plan.path).expect("images are alike");
    let found = alike.find(&entry.id).expect("the same plans").latency_seconds_at(ONE);
    assert!(is_near(found, entry.latency_seconds_at(ONE) * ratio), "{found}");
}

#[test]
fn a_module_that_costs_nothing_teaches_nothing() {
    let school = School::new();
    let modules = (0..school.loaded.family.graph.modules().len()).map(ModuleId);
    let mut identities = modules.filter(|id| school.loaded.profile.module(*id).is_none());
    let identity = identities.next().expect("blocks may be skipped");
    let times = [(identity, Duration::from_secs(1)), (ModuleId(usize::MAX), TICK)];
    let run = Run { shape: ONE, times: &times, whole: TICK, is_alone: true, ended: school.start };
    let known = school.learned.learn(&run, 1.0, &|id, _| panic!("nothing is learned of {id:?}"));
    assert_eq!(known, Duration::ZERO);
}

#[test]
fn what_was_found_is_remembered_while_the_plans_cost_the_same() {
    let fastest = Fastest::default();
    let (tables, budget) = (Arc::new("tables"), Budget::default());
    let get = |tables, rows, budget, found| {
        fastest.seconds(tables, Shape::new(rows, 8), budget, || found)
    };
    assert_eq!(get(&tables, 1, &budget, Some(1.0)), Some(1.0));
    assert_eq!(get(&tables, 1, &budget, Some(2.0)), Some(1.0));
    assert_eq!(get(&tables, 2, &budget, Some(2.0)), Some(2.0));
    let better = Budget { min_quality: Some(0.9), ..Budget::default() };
    assert_eq!(get(&tables, 1, &better, None), None);
    assert_eq!(get(&Arc::new("tables"), 1, &budget, Some(3.0)), Some(3.0));
}

#[test]
fn no_more_is_remembered_than_a_bound() {
    let (fastest, tables) = (Fastest::default(), Arc::new(()));
    for rows in 0..2 * MAX_CACHED {
        fastest.seconds(&tables, Shape::new(rows, 1), &Budget::default(), || None);
        assert!(fastest.known.lock().expect("no panic").seconds.len() <= MAX_CACHED);
    }
}
