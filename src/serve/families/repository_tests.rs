//! Tests of the states of families that are loaded, reloaded, unloaded and followed.

use std::{collections::BTreeMap, path::Path};

use super::*;
use crate::{
    plan::Budget,
    runtime::support_tests::runtime,
    serve::{
        ErrorCode, FamilyService, InferenceThreads,
        support_tests::{CHEAP, Runs, config, request, small},
    },
};

/// Content of a pool that changes during a test.
#[derive(Default)]
struct Pool {
    names: Vec<&'static str>,
    /// Reason why the pool cannot be read, if it cannot.
    fault: Option<&'static str>,
    /// Reasons why families cannot be loaded.
    broken: BTreeMap<&'static str, &'static str>,
    stamps: BTreeMap<&'static str, Stamps>,
    /// Family whose load panics.
    panics: Option<&'static str>,
    /// Family that someone takes out of service while another one is loaded.
    unloaded: Option<&'static str>,
    /// Names of the families that were loaded, and the states of all at that time.
    loads: Vec<(String, String)>,
}

/// Loader from a [`Pool`]. All its families are the same except for their names.
struct Fake {
    pool: Arc<Mutex<Pool>>,
    registry: Arc<Registry>,
}

impl Loader for Fake {
    fn names(&self) -> Result<Vec<String>, String> {
        let pool = self.pool.lock().expect("no panic");
        let names = pool.names.iter().map(|name| (*name).to_owned()).collect();
        pool.fault.map_or(Ok(names), |reason| Err(reason.to_owned()))
    }

    fn load(&self, name: &str) -> Result<LoadedFamily, String> {
        let mut pool = self.pool.lock().expect("no panic");
        pool.loads.push((name.to_owned(), states(&self.registry)));
        if let Some(other) = pool.unloaded.filter(|other| *other != name) {
            self.registry.set(other, FamilyState::Unloaded);
        }
        if pool.panics == Some(name) {
            drop(pool);
            panic!("as the test wants");
        }
        pool.broken.get(name).map_or_else(|| Ok(small()), |reason| Err((*reason).to_owned()))
    }

    fn stamps(&self, name: &str) -> Option<Stamps> {
        self.pool.lock().expect("no panic").stamps.get(name).cloned()
    }
}

/// Returns the states of all families, such as `a: ready, b: loading`.
fn states(registry: &Registry) -> String {
    let state = |(name, state): (String, FamilyState)| {
        let state = match state {
            FamilyState::Loading => "loading",
            FamilyState::Ready(_) => "ready",
            FamilyState::Failed { .. } => "failed",
            FamilyState::Unloaded => "unloaded",
        };
        format!("{name}: {state}")
    };
    registry.families().into_iter().map(state).collect::<Vec<_>>().join(", ")
}

struct Bench {
    repository: Repository,
    pool: Arc<Mutex<Pool>>,
    seen: Seen,
    _threads: InferenceThreads,
}

impl Bench {
    fn new(names: &[&'static str]) -> Self {
        let pool = Arc::new(Mutex::new(Pool { names: names.to_vec(), ..Pool::default() }));
        let registry = Arc::new(Registry::default());
        let started = Engine::start(runtime(), config(), Arc::new(Runs::default()));
        let (engine, threads) = started.expect("the thread starts");
        let loader = Fake { pool: pool.clone(), registry: registry.clone() };
        let repository = Repository::new(registry, engine, Box::new(loader));
        Self { repository, pool, seen: Seen::default(), _threads: threads }
    }

    fn change(&self, change: impl FnOnce(&mut Pool)) {
        change(&mut self.pool.lock().expect("no panic"));
    }

    fn states(&self) -> String {
        states(self.repository.registry())
    }

    fn service(&self, name: &str) -> Arc<FamilyService> {
        self.repository.registry().family(name).expect("it is ready")
    }

    fn num_loads(&self) -> usize {
        self.pool.lock().expect("no panic").loads.len()
    }

    /// Looks at the pool `times` times. Returns the number of families that were loaded.
    fn follow(&mut self, times: usize) -> usize {
        let before = self.num_loads();
        (0..times).for_each(|_| self.repository.follow(&mut self.seen));
        self.num_loads() - before
    }
}

/// Returns the stamps of a folder with one file of `length` bytes.
fn version(folder: &Path, length: usize) -> Stamps {
    std::fs::write(folder.join("weights"), vec![0; length]).expect("written");
    Stamps::take(folder).expect("taken")
}

#[test]
fn families_are_loaded_one_after_another_while_the_rest_wait() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.change(|pool| {
        pool.broken.insert("b", "no weights");
    });
    bench.repository.load_all(&["a", "b", "c"].map(str::to_owned));
    assert_eq!(bench.states(), "a: ready, b: failed, c: ready");
    let pool = bench.pool.lock().expect("no panic");
    let loads: Vec<(&str, &str)> = pool.loads.iter().map(|(name, s)| (&**name, &**s)).collect();
    assert_eq!(
        loads,
        [
            ("a", "a: loading, b: loading, c: loading"),
            ("b", "a: ready, b: loading, c: loading"),
            ("c", "a: ready, b: failed, c: loading"),
        ]
    );
}

#[test]
fn a_panic_while_a_family_is_loaded_fails_that_family() {
    let bench = Bench::new(&["a", "b", "c"]);
    bench.change(|pool| pool.panics = Some("b"));
    bench.repository.load_all(&["a", "b", "c"].map(str::to_owned));
    assert_eq!(bench.states(), "a: ready, b: failed, c: ready");
    bench.change(|pool| pool.panics = Some("a"));
    let error = bench.repository.load("a").expect_err("it panics");
    assert!(matches!(&error, ServeError::LoadFailed { reason, .. } if reason.contains("panicked")));
    assert_eq!(bench.states(), "a: ready, b: failed, c: ready", "the old version is served");
    bench.repository.load("b").expect("it may be loaded again");
}

#[test]
fn a_family_that_someone_unloads_before_its_turn_is_not_loaded() {
    let bench = Bench::new(&["a", "b"]);
    bench.change(|pool| pool.unloaded = Some("b"));
    bench.repository.load_all(&["a", "b"].map(str::to_owned));
    assert_eq!(bench.states(), "a: ready, b: unloaded");
}

#[test]
fn a_family_that_the_pool_does_not_have_is_not_loaded() {
    let bench = Bench::new(&["a", "b"]);
    let long = "x".repeat(1_000);
    let error = bench.repository.load(&long).expect_err("no such family");
    assert_eq!(error.code(), ErrorCode::NotFound);
    let ServeError::UnknownFamily { name, known } = error else { panic!("{error}") };
    assert_eq!((name.len(), known.as_str()), (100, "a, b"));
    assert_eq!((bench.num_loads(), bench.states().as_str()), (0, ""));
}

#[test]
fn the_names_are_those_of_the_pool_and_of_what_is_offered() {
    let bench = Bench::new(&["b", "a"]);
    bench.repository.registry().set("c", FamilyState::Unloaded);
    bench.repository.registry().set("a", FamilyState::Loading);
    assert_eq!(bench.repository.names(), ["a", "b", "c"]);
    bench.change(|pool| pool.fault = Some("not a folder"));
    assert_eq!(bench.repository.names(), ["a", "c"], "the pool cannot be read");
}

#[test]
fn nothing_more_is_loaded_once_the_server_stops() {
    let bench = Bench::new(&["a", "b"]);
    bench.repository.registry().start_draining();
    bench.repository.load_all(&["a".to_owned(), "b".to_owned()]);
    assert_eq!(bench.num_loads(), 0);
}

#[test]
fn a_family_that_does_not_load_says_why_until_it_loads() {
    let bench = Bench::new(&["a"]);
    bench.change(|pool| {
        pool.broken.insert("a", "no weights");
    });
    let error = bench.repository.load("a").expect_err("it is broken");
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains("no weights"), "{error}");
    assert!(matches!(&error, ServeError::LoadFailed { reason, .. } if reason == "no weights"));
    let state = bench.repository.registry().state("a");
    assert!(matches!(state, Some(FamilyState::Failed { reason }) if reason == "no weights"));
    bench.change(|pool| pool.broken.clear());
    bench.repository.load("a").expect("it is mended");
    assert_eq!(bench.states(), "a: ready");
}

#[test]
fn the_version_before_is_served_where_the_next_does_not_load() {
    let bench = Bench::new(&["a"]);
    bench.repository.load("a").expect("it loads");
    let before = bench.service("a");
    bench.change(|pool| {
        pool.broken.insert("a", "half copied");
    });
    bench.repository.load("a").expect_err("it is broken");
    assert!(Arc::ptr_eq(&bench.service("a"), &before));
    bench.change(|pool| pool.broken.clear());
    bench.repository.load("a").expect("it loads");
    assert!(!Arc::ptr_eq(&bench.service("a"), &before), "the new version");
}

#[tokio::test]
async fn requests_on_a_replaced_or_unloaded_version_end_on_it() {
    let bench = Bench::new(&["a"]);
    let ask = || request(0.5, Budget { plan: Some(CHEAP.into()), ..Budget::default() });
    bench.repository.load("a").expect("it loads");
    let old = bench.service("a");
    bench.repository.load("a").expect("it loads again");
    old.infer(ask()).await.expect("the old version still answers");
    let new = bench.service("a");
    bench.repository.unload("a").expect("it is offered");
    new.infer(ask()).await.expect("a request that has the service is answered");
    let error = bench.repository.registry().family("a").expect_err("for new requests");
    assert_eq!(error.code(), ErrorCode::Unavailable);
}

#[test]
fn what_is_not_offered_cannot_be_unloaded() {
    let bench = Bench::new(&["a"]);
    let error = bench.repository.unload("a").expect_err("it was never loaded");
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert_eq!(bench.states(), "");
    bench.repository.load("a").expect("it loads");
    (0..2).for_each(|_| bench.repository.unload("a").expect("it is offered"));
    assert_eq!(bench.states(), "a: unloaded");
    bench.repository.load("a").expect("it loads again");
    assert_eq!(bench.states(), "a: ready");
}

#[test]
fn new_files_are_loaded_once_they_rest() {
    let (mut bench, folder) = (Bench::new(&["a"]), tempfile::tempdir().expect("a folder"));
    let put = |bench: &Bench, length| {
        let stamps = version(folder.path(), length);
        bench.change(|pool| drop(pool.stamps.insert("a", stamps)));
    };
    assert_eq!(bench.follow(2), 0, "its files cannot be read");
    put(&bench, 1);
    assert_eq!(bench.follow(1), 0, "they may still be copied");
    put(&bench, 2);
    assert_eq!(bench.follow(1), 0, "they are");
    assert_eq!((bench.follow(1), bench.states().as_str()), (1, "a: ready"));
    assert_eq!(bench.follow(3), 0, "they are loaded once");
    put(&bench, 3);
    assert_eq!((bench.follow(1), bench.follow(1), bench.follow(1)), (0, 1, 0));
}

#[test]
fn files_that_are_served_are_not_loaded_again() {
    let mut bench = Bench::new(&["a"]);
    bench.repository.load("a").expect("it loads");
    let stamps = bench.service("a").stamps().clone();
    bench.change(|pool| drop(pool.stamps.insert("a", stamps)));
    assert_eq!(bench.follow(3), 0);
}

#[test]
fn files_that_do_not_load_are_not_tried_again() {
    let (mut bench, folder) = (Bench::new(&["a"]), tempfile::tempdir().expect("a folder"));
    for length in [1, 2] {
        let stamps = version(folder.path(), length);
        bench.change(|pool| {
            pool.broken.insert("a", "no weights");
            pool.stamps.insert("a", stamps);
        });
        assert_eq!((bench.follow(5), bench.states().as_str()), (1, "a: failed"));
    }
}

#[test]
fn what_someone_unloaded_or_loads_is_left_alone() {
    let (mut bench, folder) = (Bench::new(&["a"]), tempfile::tempdir().expect("a folder"));
    let states = [FamilyState::Unloaded, FamilyState::Loading];
    for (state, length) in states.into_iter().zip(1..) {
        let stamps = version(folder.path(), length);
        bench.change(|pool| drop(pool.stamps.insert("a", stamps)));
        bench.repository.registry().set("a", state);
        assert_eq!(bench.follow(3), 0, "{}", bench.states());
    }
}

#[test]
fn a_family_that_leaves_the_pool_is_no_longer_listed_whatever_its_state() {
    let states = [FamilyState::Unloaded, FamilyState::Failed { reason: "no weights".to_owned() }];
    for state in states {
        let mut bench = Bench::new(&["b"]);
        bench.repository.registry().set("a", state.clone());
        assert_eq!((bench.follow(1), bench.states().as_str()), (0, ""), "{state:?}");
        assert_eq!(bench.repository.names(), ["b"]);
        bench.repository.registry().set("a", state.clone());
        let error = bench.repository.load("a").expect_err("it is gone");
        assert!(matches!(error, ServeError::UnknownFamily { .. }), "{error}");
        assert_eq!((bench.num_loads(), bench.states().as_str()), (0, ""), "{state:?}");
    }
    let mut bench = Bench::new(&[]);
    bench.repository.registry().set("a", FamilyState::Loading);
    assert_eq!((bench.follow(1), bench.states().as_str()), (0, "a: loading"));
}

#[test]
fn a_family_that_leaves_the_pool_is_taken_out_of_service_and_may_return() {
    let (mut bench, folder) = (Bench::new(&["a"]), tempfile::tempdir().expect("a folder"));
    let stamps = version(folder.path(), 1);
    bench.change(|pool| drop(pool.stamps.insert("a", stamps)));
    assert_eq!((bench.follow(2), bench.states().as_str()), (1, "a: ready"));
    bench.change(|pool| pool.fault = Some("not mounted"));
    assert_eq!((bench.follow(1), bench.states().as_str()), (0, "a: ready"));
    bench.change(|pool| (pool.fault, pool.names) = (None, Vec::new()));
    assert_eq!((bench.follow(1), bench.states().as_str()), (0, ""));
    bench.change(|pool| pool.names = vec!["a"]);
    assert_eq!((bench.follow(2), bench.states().as_str()), (1, "a: ready"));
}
