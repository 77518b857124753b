//! The sessions of all executors of a process, under one memory limit.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{RuntimeError, executor::Residency, session::ModuleSession};
use crate::tensor::give_back_freed_memory;

/// Whose session, and of which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) executor: u64,
    pub(super) network: usize,
}

/// How long a session is waited for that another thread has leased, before the limit is taken for
/// too low.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Every loaded session. Those that run are leased; of the others the least recently used ones go
/// when another needs their place. Of a network there are as many as run at once, or as there is
/// room for.
#[derive(Debug)]
pub(super) struct Residents<S = ModuleSession> {
    /// What the process may hold, in bytes.
    limit: Option<u64>,
    process: Process,
    state: Mutex<State<S>>,
    /// Told when a lease ends.
    returned: Condvar,
    /// Held while a session is made, so that two together cannot break the limit.
    loading: Mutex<()>,
}

#[derive(Debug)]
struct State<S> {
    sessions: HashMap<Key, Sessions<S>>,
    num_leased: usize,
    /// Counters of executors, the gone ones left out.
    counts: HashMap<u64, Residency>,
    num_executors: u64,
    /// Counts uses.
    clock: u64,
    /// The weights of all sessions.
    bytes: u64,
}

/// The sessions of a network.
#[derive(Debug)]
struct Sessions<S> {
    idle: Vec<S>,
    num_leased: usize,
    /// The weights of each.
    bytes: u64,
    used: u64,
}

/// What is asked of the system about the process.
#[derive(Debug, Clone, Copy)]
struct Process {
    /// Tells the bytes that it holds.
    held_bytes: fn() -> u64,
    /// Gives back what was freed.
    give_back: fn(),
}

/// A session that stays while it is used.
#[derive(Debug)]
pub(super) struct Lease<'a, S = ModuleSession> {
    residents: &'a Residents<S>,
    key: Key,
    session: Option<S>,
}

impl<S> Lease<'_, S> {
    /// Returns the session.
    ///
    /// # Errors
    ///
    /// Never fails while the lease lasts.
    pub(super) fn session(&mut self) -> Result<&mut S, RuntimeError> {
        self.session.as_mut().ok_or(RuntimeError::NotAPath)
    }
}

/// A session that ran into a panic is not used again.
impl<S> Drop for Lease<'_, S> {
    fn drop(&mut self) {
        let mut state = self.residents.lock();
        let gone = state.give_back(self.key, self.session.take(), std::thread::panicking());
        drop(state);
        self.residents.returned.notify_all();
        drop(gone);
    }
}

impl Residents {
    pub(super) fn new(limit: Option<u64>) -> Arc<Self> {
        let give_back = give_back_freed_memory;
        Arc::new(Self::of_process(limit, Process { held_bytes, give_back }))
    }
}

impl<S> Residents<S> {
    fn of_process(limit: Option<u64>, process: Process) -> Self {
        let state = State {
            sessions: HashMap::new(),
            num_leased: 0,
            counts: HashMap::new(),
            num_executors: 0,
            clock: 0,
            bytes: 0,
        };
        let (returned, loading) = (Condvar::new(), Mutex::default());
        Self { limit, process, state: Mutex::new(state), returned, loading }
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the name of a new executor.
    pub(super) fn join(&self) -> u64 {
        let mut state = self.lock();
        state.num_executors += 1;
        state.num_executors
    }

    /// Drops the sessions of an executor.
    pub(super) fn leave(&self, executor: u64) {
        let mut state = self.lock();
        state.counts.remove(&executor);
        let keys: Vec<Key> =
            state.sessions.keys().copied().filter(|key| key.executor == executor).collect();
        let gone: Vec<_> = keys.into_iter().filter_map(|key| state.sessions.remove(&key)).collect();
        for sessions in &gone {
            state.bytes -= sessions.bytes * sessions.count();
            state.num_leased -= sessions.num_leased;
        }
        drop(state);
        drop(gone);
    }

    /// Returns what an executor holds.
    pub(super) fn residency(&self, executor: u64) -> Residency {
        self.lock().counts.get(&executor).copied().unwrap_or_default()
    }

    /// Tells whether something of `bytes` can be loaded while all else stays.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.missing(&self.lock(), bytes) == 0
    }

    /// Tells whether there is a session of `key`.
    pub(super) fn has(&self, key: Key) -> bool {
        self.lock().sessions.contains_key(&key)
    }

    /// Leases a session; makes it with `load`, after making room for its `bytes` of weights, where
    /// none is idle. Another one beside those that run is made where nothing has to go for it.
    ///
    /// # Errors
    ///
    /// Fails when it does not fit under the limit by itself, and where `load` fails.
    pub(super) fn lease(
        &self,
        key: Key,
        bytes: u64,
        load: impl FnOnce() -> Result<S, RuntimeError>,
    ) -> Result<Lease<'_, S>, RuntimeError> {
        let lease = |session| Lease { residents: self, key, session: Some(session) };
        if let Some(session) = self.take_or_wait(key, bytes) {
            return Ok(lease(session));
        }
        let _single = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have made it, or returned it, in the meantime.
        if let Some(session) = self.lock().take(key) {
            return Ok(lease(session));
        }
        self.make_room(bytes)?;
        let session = load()?;
        self.lock().insert(key, bytes);
        Ok(lease(session))
    }

    /// Takes an idle session; waits for one that runs where there is no room for another.
    fn take_or_wait(&self, key: Key, bytes: u64) -> Option<S> {
        let mut state = self.lock();
        loop {
            if let Some(session) = state.take(key) {
                return Some(session);
            }
            if !state.sessions.contains_key(&key) || self.missing(&state, bytes) == 0 {
                return None;
            }
            state = self.wait_for_return(state)?;
        }
    }

    /// Waits until a lease ends; `None` where that takes too long.
    fn wait_for_return<'a>(
        &self,
        state: MutexGuard<'a, State<S>>,
    ) -> Option<MutexGuard<'a, State<S>>> {
        let waited = self.returned.wait_timeout(state, LONGEST_WAIT);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out()).then_some(state)
    }

    /// Lets least recently used sessions go until `bytes` fit; waits for those that run if need be.
    fn make_room(&self, bytes: u64) -> Result<(), RuntimeError> {
        loop {
            let mut state = self.lock();
            let missing = self.missing(&state, bytes);
            if missing == 0 {
                return Ok(());
            }
            let gone = state.evict(missing);
            if gone.is_empty() {
                if state.num_leased > 0 && self.wait_for_return(state).is_some() {
                    continue;
                }
                let limit = self.limit.unwrap_or(u64::MAX);
                return Err(RuntimeError::MemoryLimit { bytes, missing, limit });
            }
            // It takes a while, during which others may run.
            drop(state);
            drop(gone);
            (self.process.give_back)();
        }
    }

    /// Returns how much must go before `bytes` more fit under the limit: what the process holds
    /// besides weights stays.
    fn missing(&self, state: &State<S>, bytes: u64) -> u64 {
        let Some(limit) = self.limit else {
            return 0;
        };
        let others = (self.process.held_bytes)().saturating_sub(state.bytes);
        (others + state.bytes + bytes).saturating_sub(limit)
    }
}

impl<S> Sessions<S> {
    fn count(&self) -> u64 {
        self.idle.len() as u64 + self.num_leased as u64
    }
}

impl<S> State<S> {
    fn take(&mut self, key: Key) -> Option<S> {
        self.clock += 1;
        let sessions = self.sessions.get_mut(&key)?;
        sessions.used = self.clock;
        let session = sessions.idle.pop()?;
        sessions.num_leased += 1;
        self.num_leased += 1;
        Some(session)
    }

    /// Adds a session that is leased.
    fn insert(&mut self, key: Key, bytes: u64) {
        self.clock += 1;
        self.bytes += bytes;
        self.num_leased += 1;
        let new = || Sessions { idle: Vec::new(), num_leased: 0, bytes, used: 0 };
        let sessions = self.sessions.entry(key).or_insert_with(new);
        sessions.num_leased += 1;
        sessions.used = self.clock;
        let counts = self.counts.entry(key.executor).or_default();
        counts.num_modules += 1;
        counts.num_loads += 1;
        counts.weight_bytes += bytes;
    }

    /// Ends a lease; returns the session where it does not stay.
    fn give_back(&mut self, key: Key, session: Option<S>, is_broken: bool) -> Option<S> {
        // The sessions of an executor that is gone are not here.
        let Some(sessions) = self.sessions.get_mut(&key) else {
            return session;
        };
        sessions.num_leased -= 1;
        self.num_leased -= 1;
        sessions.idle.extend(session);
        if is_broken { self.remove_idle(key) } else { None }
    }

    /// Removes the session of `key` that was used last and is not leased.
    fn remove_idle(&mut self, key: Key) -> Option<S> {
        let sessions = self.sessions.get_mut(&key)?;
        let session = sessions.idle.pop()?;
        let bytes = sessions.bytes;
        if sessions.count() == 0 {
            self.sessions.remove(&key);
        }
        self.bytes -= bytes;
        if let Some(counts) = self.counts.get_mut(&key.executor) {
            counts.num_modules -= 1;
            counts.weight_bytes -= bytes;
        }
        Some(session)
    }

    /// Removes the sessions of networks that were used longest ago and are not leased, of so many
    /// bytes together or more if there are.
    fn evict(&mut self, bytes: u64) -> Vec<S> {
        let idle = self.sessions.iter().filter(|(_, sessions)| !sessions.idle.is_empty());
        let mut idle: Vec<(u64, Key, u64)> =
            idle.map(|(key, sessions)| (sessions.used, *key, sessions.bytes)).collect();
        idle.sort_unstable_by_key(|(used, ..)| *used);
        let (mut freed, mut gone) = (0, Vec::new());
        for (_, key, own) in idle {
            while freed < bytes {
                let Some(session) = self.remove_idle(key) else {
                    break;
                };
                freed += own;
                gone.push(session);
                if let Some(counts) = self.counts.get_mut(&key.executor) {
                    counts.num_evictions += 1;
                }
            }
        }
        gone
    }
}

/// Returns the bytes of memory that the process holds; 0 where the system does not tell.
fn held_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(held_bytes: fn() -> u64) -> Process {
        Process { held_bytes, give_back: || {} }
    }

    /// The process holds nothing besides weights.
    fn residents(limit: u64) -> Residents<usize> {
        Residents::of_process(Some(limit), process(|| 0))
    }

    fn use_of(residents: &Residents<usize>, key: Key, bytes: u64) -> Result<usize, RuntimeError> {
        let mut lease = residents.lease(key, bytes, || Ok(key.network))?;
        Ok(*lease.session().expect("leased"))
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
    fn what_was_not_used_for_longest_gives_way() {
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
        assert!(residents.has_room(5) && !residents.has_room(6));
    }

    #[test]
    fn what_runs_stays() {
        let residents = residents(20);
        let own = residents.join();
        let lease = residents.lease(key(own, 0), 10, || Ok(0)).expect("room");
        use_of(&residents, key(own, 1), 10).expect("room");
        use_of(&residents, key(own, 2), 10).expect("room in place of 1");
        assert_eq!(loaded(&residents), [0, 2]);
        drop(lease);
        let error = use_of(&residents, key(own, 3), 21).expect_err("there are 20");
        assert!(matches!(error, RuntimeError::MemoryLimit { bytes: 21, missing: 1, .. }));
        use_of(&residents, key(own, 3), 20).expect("room for it alone");
        assert_eq!(loaded(&residents), [3]);
    }

    #[test]
    fn a_network_has_as_many_sessions_as_run_at_once() {
        let residents = residents(30);
        let own = residents.join();
        let one = residents.lease(key(own, 0), 10, || Ok(1)).expect("room");
        let two = residents.lease(key(own, 0), 10, || Ok(2)).expect("room for another");
        assert_eq!(residents.residency(own).num_modules, 2);
        drop((one, two));
        // Both are there, so nothing is loaded.
        let refused = || Err(RuntimeError::NotAPath);
        let one = residents.lease(key(own, 0), 10, refused).expect("idle");
        let two = residents.lease(key(own, 0), 10, refused).expect("idle");
        drop((one, two));
        use_of(&residents, key(own, 1), 20).expect("room in place of one of them");
        assert_eq!((loaded(&residents), residents.residency(own).num_modules), (vec![0, 1], 2));
    }

    #[test]
    fn what_runs_elsewhere_is_waited_for_where_there_is_no_room_for_another() {
        let residents = residents(10);
        let own = residents.join();
        let lease = residents.lease(key(own, 0), 10, || Ok(0)).expect("room");
        let residents = &residents;
        std::thread::scope(|scope| {
            let refused = || Err(RuntimeError::NotAPath);
            let same = scope.spawn(move || residents.lease(key(own, 0), 10, refused).map(drop));
            let other = scope.spawn(move || use_of(residents, key(own, 1), 10));
            drop(lease);
            // The other one may have taken its place before.
            let same = same.join().expect("no panic");
            assert!(matches!(same, Ok(()) | Err(RuntimeError::NotAPath)), "{same:?}");
            assert_eq!(other.join().expect("no panic").expect("room after it"), 1);
        });
        assert_eq!(residents.residency(own).weight_bytes, 10);
    }

    #[test]
    fn what_ran_into_a_panic_is_not_used_again() {
        let residents = residents(10);
        let own = residents.join();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _lease = residents.lease(key(own, 0), 10, || Ok(0)).expect("room");
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(residents.residency(own).num_modules, 0);
        assert_eq!(use_of(&residents, key(own, 0), 10).expect("made anew"), 0);
    }

    #[test]
    fn what_the_process_holds_besides_counts() {
        let residents: Residents<usize> = Residents::of_process(Some(120), process(|| 100));
        assert!(residents.has_room(20) && !residents.has_room(21));
    }

    #[test]
    fn what_cannot_be_loaded_takes_no_room_and_an_executor_takes_its_sessions_along() {
        let residents = residents(20);
        let (one, two) = (residents.join(), residents.join());
        let refused = || Err(RuntimeError::NotAPath);
        residents.lease(key(one, 0), 10, refused).expect_err("refused");
        assert!(residents.has_room(20));
        use_of(&residents, key(one, 0), 10).expect("room");
        use_of(&residents, key(two, 1), 10).expect("room");
        residents.leave(one);
        assert_eq!(loaded(&residents), [1]);
        assert!(residents.has_room(10));
        assert_eq!(residents.residency(one), Residency::default());
    }
}
