//! Tests of sessions under a memory limit.

use std::sync::mpsc;

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

use super::*;

fn process(held: fn() -> Held) -> Process {
    Process { held, give_back: || {} }
}

fn holding(bytes: u64) -> Held {
    Held { bytes, file_bytes: 0 }
}

/// Returns residents of a process that holds no memory other than weights.
fn residents(limit: u64) -> Residents<usize> {
    Residents::of_process(Some(limit), process(|| holding(0)))
}

fn weighing(bytes: u64) -> Weights {
    Weights { bytes, table_bytes: 0 }
}

fn need(activations: u64, session: u64) -> Need {
    Need { activations, total: activations + session }
}

/// Returns whether `bytes` can be loaded without an eviction.
fn has_room(residents: &Residents<usize>, bytes: u64) -> bool {
    residents.has_room(need(0, bytes))
}

fn use_of(residents: &Residents<usize>, key: Key, bytes: u64) -> Result<usize, RuntimeError> {
    let mut lease = residents.lease(key, weighing(bytes), || Ok(key.network))?;
    Ok(*lease.session())
}

fn key(executor: u64, network: usize) -> Key {
    Key { executor, network }
}

fn loaded(residents: &Residents<usize>) -> Vec<usize> {
    let mut networks: Vec<usize> =
        residents.lock().sessions.keys().map(|key| key.network).collect();
    networks.sort_unstable();
    networks
}

#[test]
fn what_was_used_twice_stays_before_what_was_used_once() {
    let residents = residents(30);
    let own = residents.join();
    for network in [0, 1, 2, 0] {
        assert_eq!(use_of(&residents, key(own, network), 10).expect("room"), network);
    }
    use_of(&residents, key(own, 3), 15).expect("room after two have gone");
    assert_eq!(loaded(&residents), [0, 3]);
    let residency = residents.residency(own);
    assert_eq!((residency.num_modules, residency.weight_bytes), (2, 25));
    assert_eq!((residency.num_loads, residency.num_evictions), (4, 2));
    assert!(has_room(&residents, 5) && !has_room(&residents, 6));
}

/// Uses networks of 10 bytes in `order` and returns the number of uses that found the network
/// loaded.
fn hits(residents: &Residents<usize>, own: u64, order: impl Iterator<Item = usize>) -> usize {
    let found = order.map(|network| {
        let is_there = residents.has(key(own, network));
        use_of(residents, key(own, network), 10).expect("room");
        usize::from(is_there)
    });
    found.sum()
}

/// Returns whether a caller that does the same at the same time is met through `other`.
fn meets(other: &(mpsc::SyncSender<()>, mpsc::Receiver<()>)) -> bool {
    let (here, there) = other;
    here.send(()).is_ok() && there.recv_timeout(Duration::from_secs(20)).is_ok()
}

#[test]
fn sessions_of_two_networks_are_created_at_the_same_time() {
    let residents = residents(100);
    let own = residents.join();
    let (a, b) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    let both = [(a.0, b.1), (b.0, a.1)];
    std::thread::scope(|scope| {
        for (network, other) in both.into_iter().enumerate() {
            let residents = &residents;
            scope.spawn(move || {
                let load = || Ok(usize::from(meets(&other)));
                let lease = residents.lease(key(own, network), weighing(10), load);
                assert_eq!(*lease.expect("room").session(), 1, "the other one waited for it");
            });
        }
    });
    assert_eq!(residents.lock().loading, []);
}

#[test]
fn what_is_being_created_counts_until_it_is_there_or_failed() {
    let residents = residents(100);
    let own = residents.join();
    let has_room = |weights| residents.foresee(&residents.lock(), weights, Need::default()) == 0;
    let look = || {
        assert!(residents.has(key(own, 0)), "nobody creates it a second time");
        assert!(has_room(40) && !has_room(41));
    };
    let fail = || {
        look();
        Err(RuntimeError::NoOutput)
    };
    assert!(residents.lease(key(own, 0), weighing(60), fail).is_err());
    assert!(has_room(100) && !residents.has(key(own, 0)));
    let load = || {
        look();
        Ok(0)
    };
    drop(residents.lease(key(own, 0), weighing(60), load).expect("room"));
    assert!(has_room(40) && !has_room(41));
}

#[test]
fn a_walk_that_does_not_fit_finds_what_fits() {
    let residents = residents(60);
    let own = residents.join();
    let walk = |times| (0..times).flat_map(|_| 0..10);
    assert_eq!(hits(&residents, own, walk(1)), 0);
    // There is room for six of ten networks. One of the six places always goes to the next network.
    assert!(hits(&residents, own, walk(10)) >= 50);
}

#[test]
fn another_walk_takes_the_place_of_one_that_is_over() {
    let residents = residents(60);
    let own = residents.join();
    let walk = |start: usize, times| (0..times).flat_map(move |_| start..start + 5);
    assert_eq!(hits(&residents, own, walk(0, 20)), 95);
    assert!(hits(&residents, own, walk(5, 20)) >= 70, "it is let in soon");
    assert!(hits(&residents, own, walk(0, 20)) >= 70, "and so is the first one again");
}

#[test]
fn what_runs_stays() {
    let residents = residents(20);
    let own = residents.join();
    let lease = residents.lease(key(own, 0), weighing(10), || Ok(0)).expect("room");
    use_of(&residents, key(own, 1), 10).expect("room");
    use_of(&residents, key(own, 2), 10).expect("room in place of 1");
    assert_eq!(loaded(&residents), [0, 2]);
    drop(lease);
    let error = use_of(&residents, key(own, 3), 23).expect_err("there are 20, and a tenth");
    assert!(matches!(error, RuntimeError::MemoryLimit { bytes: 23, missing: 3, .. }));
    use_of(&residents, key(own, 3), 22).expect("a tenth more rather than a request that fails");
    use_of(&residents, key(own, 3), 20).expect("room for it alone");
    assert_eq!(loaded(&residents), [3]);
}

#[test]
fn what_is_pinned_stays() {
    let residents = residents(30);
    let own = residents.join();
    residents.pin(key(own, 0));
    for network in [0, 1, 2, 3, 4] {
        use_of(&residents, key(own, network), 10).expect("room");
    }
    assert_eq!(loaded(&residents), [0, 1, 4]);
    let error = use_of(&residents, key(own, 5), 30).expect_err("10 of 30 are pinned");
    assert!(matches!(error, RuntimeError::MemoryLimit { missing: 10, .. }));
}

#[test]
fn what_is_not_there_takes_as_long_as_it_took() {
    let residents = residents(20);
    let own = residents.join();
    let slow = || {
        std::thread::park_timeout(Duration::from_millis(20));
        Ok(0)
    };
    drop(residents.lease(key(own, 0), weighing(10), slow).expect("room"));
    let wanted = [(key(own, 0), 10), (key(own, 1), 10)];
    let times = residents.load_times(wanted);
    assert_eq!(times[0], Duration::ZERO);
    assert!(times[1] > Duration::ZERO, "what was never there is guessed");
    use_of(&residents, key(own, 1), 20).expect("room in its place");
    let times = residents.load_times(wanted);
    assert!(times[0] >= Duration::from_millis(19), "{times:?}");
    assert_eq!(times[1], Duration::ZERO);
    let without: Residents<usize> = Residents::of_process(None, process(|| holding(0)));
    assert!(without.load_times(wanted).iter().all(|time| !time.is_zero()), "none is loaded yet");
}

#[test]
fn a_network_has_as_many_sessions_as_run_at_once() {
    let residents = residents(30);
    let own = residents.join();
    let one = residents.lease(key(own, 0), weighing(10), || Ok(1)).expect("room");
    let two = residents.lease(key(own, 0), weighing(10), || Ok(2)).expect("room for another");
    assert_eq!(residents.residency(own).num_modules, 2);
    drop((one, two));
    // Both are loaded, so `refused` is not called.
    let refused = || Err(RuntimeError::NotAPath);
    let one = residents.lease(key(own, 0), weighing(10), refused).expect("idle");
    let two = residents.lease(key(own, 0), weighing(10), refused).expect("idle");
    drop((one, two));
    use_of(&residents, key(own, 1), 20).expect("room in place of one of them");
    assert_eq!((loaded(&residents), residents.residency(own).num_modules), (vec![0, 1], 2));
}

#[test]
fn what_runs_elsewhere_is_waited_for_where_there_is_no_room_for_another() {
    let residents = residents(10);
    let own = residents.join();
    let lease = residents.lease(key(own, 0), weighing(10), || Ok(0)).expect("room");
    let residents = &residents;
    std::thread::scope(|scope| {
        let refused = || Err(RuntimeError::NotAPath);
        let same =
            scope.spawn(move || residents.lease(key(own, 0), weighing(10), refused).map(drop));
        let other = scope.spawn(move || use_of(residents, key(own, 1), 10));
        drop(lease);
        // The other network may have taken the place of the session before.
        let same = same.join().expect("no panic");
        assert!(matches!(same, Ok(()) | Err(RuntimeError::NotAPath)), "{same:?}");
        assert_eq!(other.join().expect("no panic").expect("room after it"), 1);
    });
    assert!(residents.residency(own).weight_bytes <= 10);
}

#[test]
fn what_ran_into_a_panic_is_not_used_again() {
    let residents = residents(10);
    let own = residents.join();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _lease = residents.lease(key(own, 0), weighing(10), || Ok(0)).expect("room");
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    assert_eq!(residents.residency(own).num_modules, 0);
    assert_eq!(use_of(&residents, key(own, 0), 10).expect("made again"), 0);
}

#[test]
fn what_the_process_holds_besides_counts() {
    let residents: Residents<usize> = Residents::of_process(Some(120), process(|| holding(100)));
    assert!(has_room(&residents, 20) && !has_room(&residents, 21));
}

#[test]
fn sessions_go_where_the_process_grows_by_other_things() {
    static HELD: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let held = || holding(HELD.load(std::sync::atomic::Ordering::Relaxed));
    let residents: Residents<usize> = Residents::of_process(Some(100), process(held));
    let own = residents.join();
    for network in [0, 1, 2] {
        use_of(&residents, key(own, network), 20).expect("room");
    }
    for (held, left) in [(100, vec![0, 1, 2]), (101, vec![0, 1]), (130, vec![])] {
        HELD.store(held, std::sync::atomic::Ordering::Relaxed);
        residents.trim();
        assert_eq!(loaded(&residents), left, "{held}");
    }
}

#[test]
fn what_cannot_be_loaded_takes_no_room_and_an_executor_takes_its_sessions_along() {
    let residents = residents(20);
    let (one, two) = (residents.join(), residents.join());
    let refused = || Err(RuntimeError::NotAPath);
    residents.lease(key(one, 0), weighing(10), refused).expect_err("refused");
    assert!(has_room(&residents, 20));
    use_of(&residents, key(one, 0), 10).expect("room");
    use_of(&residents, key(two, 1), 10).expect("room");
    residents.leave(one);
    assert_eq!(loaded(&residents), [1]);
    assert!(has_room(&residents, 10));
    assert_eq!(residents.residency(one), Residency::default());
}

#[test]
fn activations_of_a_run_take_the_place_of_idle_sessions() {
    let residents = residents(60);
    let own = residents.join();
    for network in [0, 1, 2, 3] {
        use_of(&residents, key(own, network), 10).expect("room");
    }
    let run = residents.reserve(need(25, 10)).expect("room");
    assert_eq!(loaded(&residents), [0, 1]);
    assert!(!has_room(&residents, 6) && has_room(&residents, 5));
    // The session that the run uses is part of the run's need.
    let lease = residents.lease(key(own, 4), weighing(10), || Ok(4)).expect("room");
    assert_eq!(loaded(&residents), [0, 1, 4]);
    drop(lease);
    assert_eq!(loaded(&residents).len(), 2, "the rest of the run may load another one");
    drop(run);
    assert!(has_room(&residents, 40));
}

#[test]
fn a_run_that_does_not_fit_beside_another_waits_for_its_end() {
    let residents = residents(60);
    let run = residents.reserve(need(30, 10)).expect("room");
    let residents = &residents;
    std::thread::scope(|scope| {
        let other = scope.spawn(move || residents.reserve(need(30, 0)).map(drop));
        std::thread::park_timeout(Duration::from_millis(20));
        assert!(!other.is_finished(), "there is no room for both");
        drop(run);
        other.join().expect("no panic").expect("room after it");
    });
}

#[test]
fn a_run_that_never_fits_is_refused_at_once_but_for_a_tenth() {
    let residents = residents(60);
    residents.reserve(need(50, 16)).expect("a tenth more rather than a request that fails");
    let start = Instant::now();
    let error = residents.reserve(need(50, 17)).expect_err("67 of 60, and a tenth");
    assert!(matches!(error, RuntimeError::MemoryLimit { bytes: 67, missing: 7, .. }));
    assert!(start.elapsed() < LONGEST_WAIT, "nothing is waited for");
    residents.reserve(need(10, 10)).expect("others fit");
}

#[test]
fn memory_kept_for_activations_does_not_count_twice() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static HELD: AtomicU64 = AtomicU64::new(10);
    // Bytes held each time after freed memory was returned: one session fewer than before.
    static LEFT: AtomicU64 = AtomicU64::new(55);
    let held = || holding(HELD.load(Ordering::Relaxed));
    let give_back = || HELD.store(LEFT.fetch_sub(10, Ordering::Relaxed), Ordering::Relaxed);
    let residents: Residents<usize> = Residents::of_process(Some(100), Process { held, give_back });
    let own = residents.join();
    for network in [0, 1, 2] {
        use_of(&residents, key(own, network), 10).expect("room");
        HELD.fetch_add(10, Ordering::Relaxed);
    }
    drop(residents.reserve(need(40, 10)).expect("room"));
    HELD.store(80, Ordering::Relaxed);
    drop(residents.reserve(need(40, 10)).expect("40 of the 80 are kept"));
    assert_eq!(loaded(&residents), [0, 1, 2]);
    HELD.store(95, Ordering::Relaxed);
    drop(residents.reserve(need(40, 10)).expect("room in place of a session"));
    assert_eq!(loaded(&residents).len(), 2, "15 are something else, and 40 were given back");
}

#[test]
fn room_is_made_for_the_pages_of_a_table_that_were_read_before() {
    static FILES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let held = || {
        let file_bytes = FILES.load(std::sync::atomic::Ordering::Relaxed);
        Held { bytes: file_bytes, file_bytes }
    };
    let residents: Residents<usize> = Residents::of_process(Some(100), process(held));
    let own = residents.join();
    let table = Weights { bytes: 0, table_bytes: 1_000 };
    let lease = residents.lease(key(own, 0), table, || Ok(0)).expect("room");
    FILES.store(70, std::sync::atomic::Ordering::Relaxed);
    drop(lease);
    assert_eq!(residents.lock().pages(key(own, 0)), 70);
    assert_eq!(residents.lock().evict(50).len(), 1, "its pages count as what goes with it");
    FILES.store(0, std::sync::atomic::Ordering::Relaxed);
    use_of(&residents, key(own, 1), 40).expect("room");
    drop(residents.lease(key(own, 0), table, || Ok(0)).expect("room"));
    assert_eq!(loaded(&residents), [0], "70 will be read again");
}

proptest! {
    /// Checks that runs and loaded sessions never exceed the limit by more than a tenth, and that
    /// all are released.
    #[test]
    fn the_limit_holds_whatever_runs(
        runs in proptest::collection::vec((0_u64..120, 0_u64..60, 0_usize..12, 0_usize..4), 1..60),
    ) {
        let residents = residents(100);
        let own = residents.join();
        for (activations, session, network, others) in runs {
            let Ok(run) = residents.reserve(need(activations, session)) else {
                prop_assert!(activations + session > 110);
                continue;
            };
            for network in network..=network + others {
                // A network always has the same weight, and the run's need covers it.
                let weight = weighing((network as u64 * 7 % 50).min(session));
                let session = usize::try_from(session).expect("small");
                let key = Key { executor: own, network: network * 100 + session };
                let mut lease = residents.lease(key, weight, || Ok(0)).expect("within its need");
                lease.session();
                let held = residents.lock().ledger.weights() + activations;
                prop_assert!(held <= 110, "{held}");
            }
            drop(run);
        }
        let mut state = residents.lock();
        prop_assert!(!state.ledger.has_runs());
        prop_assert_eq!(state.num_leased, 0);
        drop(state.evict(u64::MAX));
        prop_assert_eq!(state.ledger.weights(), 0);
    }
}

#[test]
fn a_cache_takes_the_place_of_idle_sessions_and_no_more_than_the_limit() {
    let residents = residents(100);
    let own = residents.join();
    use_of(&residents, key(own, 0), 60).expect("room");
    residents.lease_cache(30).expect("room beside the session");
    assert_eq!(loaded(&residents), [0]);
    residents.lease_cache(40).expect("room in the session's place");
    assert_eq!((loaded(&residents), residents.cache_bytes()), (vec![], 70));
    assert!(!has_room(&residents, 31), "what is leased is not for sessions");
    let refused = residents.lease_cache(31).expect_err("31 bytes are more than are left");
    assert!(matches!(refused, RuntimeError::MemoryLimit { bytes: 31, missing: 1, .. }));
    assert_eq!(residents.cache_bytes(), 70, "a refusal leases nothing");
    residents.free_cache(40);
    residents.lease_cache(31).expect("room after some went back");
}

proptest! {
    #[test]
    fn caches_and_sessions_never_exceed_the_limit(
        steps in proptest::collection::vec((0_u64..3, 1_u64..60, 0_usize..6), 1..60),
    ) {
        let residents = residents(100);
        let own = residents.join();
        let mut leased = Vec::new();
        for (kind, bytes, network) in steps {
            match kind {
                0 => leased.extend(residents.lease_cache(bytes).is_ok().then_some(bytes)),
                1 => leased.pop().into_iter().for_each(|bytes| residents.free_cache(bytes)),
                _ => drop(use_of(&residents, key(own, network), 10)),
            }
            let caches: u64 = leased.iter().sum();
            prop_assert_eq!(residents.cache_bytes(), caches);
            prop_assert!(caches <= 100, "leases are never tolerated beyond the limit");
        }
    }
}
