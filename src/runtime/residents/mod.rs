//! The sessions of all executors of a process, under one memory limit.

pub(super) mod ledger;
pub(super) mod sessions;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{RuntimeError, session::ModuleSession};
use crate::tensor::{MappedApart, give_back_freed_memory, reuse_freed_memory};
use ledger::Need;
pub use sessions::Residency;
use sessions::{Key, State, Weights};

/// Longest wait for a leased session or a run's end before the limit counts as too low.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Divisor of the limit: this fraction of it is kept as freed memory for the next run.
const KEPT_SHARE: u64 = 32;

/// Number of runs after which the estimate of other memory is made exact again, if memory is short.
const RUNS_UNTIL_SETTLED: u32 = 8;

/// The loaded sessions of a process. Running sessions are leased. Of the others, the session that
/// is expected to be used again last is evicted first. A network has one session per concurrent
/// run, as far as there is room.
#[derive(Debug)]
pub(super) struct Residents<S = ModuleSession> {
    /// Most bytes that the process may hold; `None` for no limit.
    limit: Option<u64>,
    process: Process,
    state: Mutex<State<S>>,
    /// Condition that is notified when a lease, a run or the creation of a session ends.
    returned: Condvar,
    /// Lock held while a run waits for memory, so that smaller runs do not overtake it forever.
    turn: Mutex<()>,
}

/// Functions that query and change the process's memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime) struct Process {
    /// Returns the memory that the process holds.
    pub(in crate::runtime) held: fn() -> Held,
    /// Returns freed memory to the system.
    pub(in crate::runtime) give_back: fn(),
}

/// Memory that the process holds.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::runtime) struct Held {
    /// Bytes of all resident memory.
    pub(in crate::runtime) bytes: u64,
    /// Bytes of mapped files, which are part of `bytes`.
    pub(in crate::runtime) file_bytes: u64,
}

/// Memory reserved for a run until the value is dropped.
#[derive(Debug)]
pub(super) struct Reserve<'a, S = ModuleSession> {
    residents: &'a Residents<S>,
    need: Need,
}

impl<S> Drop for Reserve<'_, S> {
    fn drop(&mut self) {
        self.residents.lock().ledger.end(self.need);
        self.residents.returned.notify_all();
    }
}

/// Creation of a session, whose weights count until the value is dropped.
#[derive(Debug)]
struct Creation<'a, S> {
    residents: &'a Residents<S>,
    key: Key,
    bytes: u64,
}

impl<S> Drop for Creation<'_, S> {
    fn drop(&mut self) {
        let mut state = self.residents.lock();
        state.ledger.end_load(self.bytes);
        if let Some(index) = state.loading.iter().position(|key| *key == self.key) {
            state.loading.swap_remove(index);
        }
        drop(state);
        self.residents.returned.notify_all();
    }
}

/// A session that is protected from eviction while it is in use.
#[derive(Debug)]
pub(super) struct Lease<'a, S = ModuleSession> {
    residents: &'a Residents<S>,
    key: Key,
    session: Option<S>,
}

impl<S> Lease<'_, S> {
    /// Returns the session.
    pub(super) fn session(&mut self) -> &mut S {
        self.session.as_mut().expect("a lease holds its session until it is dropped")
    }
}

/// Returns the session for later use, or drops it after a panic.
impl<S> Drop for Lease<'_, S> {
    fn drop(&mut self) {
        let mut state = self.residents.lock();
        if state.has_table(self.key) {
            state.learn_pages(self.key, (self.residents.process.held)().file_bytes);
        }
        let broken = state.give_back(self.key, self.session.take(), std::thread::panicking());
        // The session was loaded in memory reserved for its run's activations, which are still to
        // come.
        let missing = state.ledger.missing(0, Need::default());
        let gone = state.evict(missing);
        drop(state);
        self.residents.returned.notify_all();
        drop((broken, gone));
    }
}

impl Residents {
    pub(super) fn new(limit: Option<u64>) -> Arc<Self> {
        if let Some(limit) = limit {
            reuse_freed_memory(limit / KEPT_SHARE);
        }
        let give_back = give_back_freed_memory;
        Arc::new(Self::of_process(limit, Process { held, give_back }))
    }
}

impl<S> Residents<S> {
    /// Creates residents of a process that is asked through `process`.
    pub(in crate::runtime) fn of_process(limit: Option<u64>, process: Process) -> Self {
        let (returned, turn) = (Condvar::new(), Mutex::default());
        Self { limit, process, state: Mutex::new(State::new(limit)), returned, turn }
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the id of a new executor.
    pub(super) fn join(&self) -> u64 {
        let mut state = self.lock();
        state.num_executors += 1;
        state.num_executors
    }

    /// Drops the sessions of `executor`.
    pub(super) fn leave(&self, executor: u64) {
        let gone = self.lock().leave(executor);
        drop(gone);
    }

    /// Returns the number and size of the modules that `executor` holds.
    pub(super) fn residency(&self, executor: u64) -> Residency {
        self.lock().counts.get(&executor).copied().unwrap_or_default()
    }

    /// Returns the limit in bytes, or `None` if there is none.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Returns whether a run that needs `need` can begin without an eviction.
    pub(super) fn has_room(&self, need: Need) -> bool {
        self.foresee(&self.lock(), 0, need) == 0
    }

    /// Returns whether a session of `key` is loaded or being created.
    pub(super) fn has(&self, key: Key) -> bool {
        let state = self.lock();
        state.sessions.contains_key(&key) || state.loading.contains(&key)
    }

    /// Protects the last session of `key` from eviction.
    pub(super) fn pin(&self, key: Key) {
        self.lock().pinned.insert(key);
    }

    /// Returns the time to load each of `wanted`, which are keys and the bytes of their weights.
    pub(super) fn load_times(&self, wanted: impl IntoIterator<Item = (Key, u64)>) -> Vec<Duration> {
        let state = self.lock();
        wanted.into_iter().map(|(key, bytes)| state.load_time(key, bytes)).collect()
    }

    /// Reserves memory for a run. Evicts idle sessions and waits for the end of other runs if
    /// necessary.
    ///
    /// # Errors
    ///
    /// Fails when `need` alone does not fit under the limit.
    pub(super) fn reserve(&self, need: Need) -> Result<Reserve<'_, S>, RuntimeError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle_in_time(need);
        let mut state = self.make_room(0, need, true)?;
        state.ledger.begin(need);
        drop(state);
        Ok(Reserve { residents: self, need })
    }

    /// Leases a session of `key`. If none is idle, makes room for its weights and creates one with
    /// `load`. A session beside running ones of `key` is created only if no eviction is necessary.
    ///
    /// # Errors
    ///
    /// Fails when the session alone does not fit under the limit, and when `load` fails.
    pub(super) fn lease(
        &self,
        key: Key,
        weights: Weights,
        load: impl FnOnce() -> Result<S, RuntimeError>,
    ) -> Result<Lease<'_, S>, RuntimeError> {
        let lease = |session| Lease { residents: self, key, session: Some(session) };
        if let Some(session) = self.take_or_wait(key, weights.bytes) {
            return Ok(lease(session));
        }
        let pages = Need { activations: 0, total: self.lock().pages(key) };
        let mut state = self.make_room(weights.bytes, pages, false)?;
        // Another thread may have returned a session in the meantime.
        if let Some(session) = state.take(key) {
            return Ok(lease(session));
        }
        state.loading.push(key);
        state.ledger.begin_load(weights.bytes);
        drop(state);
        let creation = Creation { residents: self, key, bytes: weights.bytes };
        let apart = MappedApart::begin();
        // The wait for other threads is not part of the load time, as it does not predict the next
        // one.
        let start = Instant::now();
        let session = load()?;
        drop(apart);
        let files = self.limit.map_or(0, |_| (self.process.held)().file_bytes);
        let mut state = self.lock();
        state.insert(key, weights, files);
        state.learn_load_time(key, weights.bytes, start.elapsed());
        drop(state);
        drop(creation);
        Ok(lease(session))
    }

    /// Leases `bytes` of memory for a cache, which must be touched before anything else is leased.
    /// Evicts idle sessions if necessary, but waits for nothing.
    ///
    /// # Errors
    ///
    /// Fails when `bytes` do not fit under the limit, even without idle sessions.
    pub(super) fn lease_cache(&self, bytes: u64) -> Result<(), RuntimeError> {
        let next = Need { activations: 0, total: bytes };
        let mut is_settled = false;
        loop {
            let mut state = self.lock();
            let missing = self.missing(&mut state, 0, next);
            if missing == 0 {
                state.ledger.cache(bytes);
                return Ok(());
            }
            let gone = state.evict(missing);
            drop(state);
            if gone.is_empty() && is_settled {
                let limit = self.limit.unwrap_or(u64::MAX);
                return Err(RuntimeError::MemoryLimit { bytes, missing, limit });
            }
            is_settled = gone.is_empty();
            drop(gone);
            self.settle();
        }
    }

    /// Gives `bytes` of a cache back.
    pub(super) fn free_cache(&self, bytes: u64) {
        if bytes > 0 {
            self.lock().ledger.drop_cache(bytes);
            self.returned.notify_all();
        }
    }

    /// Returns the bytes of the caches of all sequences.
    pub(super) fn cache_bytes(&self) -> u64 {
        self.lock().ledger.caches()
    }

    /// Takes an idle session of `key`, or returns `None` if one must be created. Waits for one that
    /// another thread creates, and for a running one if there is no room for another.
    fn take_or_wait(&self, key: Key, bytes: u64) -> Option<S> {
        let mut state = self.lock();
        loop {
            if let Some(session) = state.take(key) {
                return Some(session);
            }
            let has_room = || self.foresee(&state, bytes, Need::default()) == 0;
            let is_loading = state.loading.contains(&key);
            if !is_loading && (!state.sessions.contains_key(&key) || has_room()) {
                return None;
            }
            state = self.wait_for_return(state)?;
        }
    }

    /// Waits until a lease, a run or the creation of a session ends, or returns `None` if that
    /// takes too long.
    fn wait_for_return<'a>(
        &self,
        state: MutexGuard<'a, State<S>>,
    ) -> Option<MutexGuard<'a, State<S>>> {
        let waited = self.returned.wait_timeout(state, LONGEST_WAIT);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out()).then_some(state)
    }

    /// Evicts sessions until a session of `weights` bytes and the need `next` fit. If necessary,
    /// waits for sessions in use or being created, and for other runs if `is_run`.
    fn make_room(
        &self,
        weights: u64,
        next: Need,
        is_run: bool,
    ) -> Result<MutexGuard<'_, State<S>>, RuntimeError> {
        // Memory that was freed while sessions were created and dropped may still be held by the
        // process.
        let mut may_give_back = true;
        loop {
            let mut state = self.lock();
            let missing = self.missing(&mut state, weights, next);
            if missing == 0 {
                return Ok(state);
            }
            if may_give_back {
                drop(state);
                self.settle();
                may_give_back = false;
                continue;
            }
            let gone = state.evict(missing);
            if !gone.is_empty() {
                // Dropping sessions takes a while, so other threads may run meanwhile.
                drop(state);
                drop(gone);
                may_give_back = true;
                continue;
            }
            let waits =
                state.num_leased + state.loading.len() > 0 || is_run && state.ledger.has_runs();
            if !waits {
                drop(state);
            } else if self.wait_for_return(state).is_some() {
                continue;
            }
            let state = self.lock();
            if state.ledger.tolerates(missing) {
                return Ok(state);
            }
            let (bytes, limit) = (weights.max(next.total), self.limit.unwrap_or(u64::MAX));
            return Err(RuntimeError::MemoryLimit { bytes, missing, limit });
        }
    }

    /// Returns freed memory to the system, and then makes the estimates exact.
    fn settle(&self) {
        (self.process.give_back)();
        let mut state = self.lock();
        state.num_unsettled = 0;
        let held = (self.process.held)().bytes;
        state.ledger.settle(held);
    }

    /// Makes the estimates exact after some runs, if a run that needs `next` might not fit. Memory
    /// kept for activations may so far count as other memory.
    fn settle_in_time(&self, next: Need) {
        let Some(limit) = self.limit else {
            return;
        };
        let mut state = self.lock();
        state.num_unsettled = state.num_unsettled.saturating_add(1);
        let is_due = state.num_unsettled > RUNS_UNTIL_SETTLED && !state.ledger.has_runs();
        drop(state);
        if is_due && (self.process.held)().bytes.saturating_add(next.total) > limit {
            self.settle();
        }
    }

    /// Evicts sessions if the process exceeds the limit because of other memory, such as pages of
    /// mapped files.
    pub(super) fn trim(&self) {
        let Some(limit) = self.limit else {
            return;
        };
        if (self.process.held)().bytes <= limit {
            return;
        }
        self.settle();
        let mut state = self.lock();
        let gone = state.evict((self.process.held)().bytes.saturating_sub(limit));
        drop(state);
        if !gone.is_empty() {
            drop(gone);
            self.settle();
        }
    }

    /// Returns the bytes to evict before a session of `weights` bytes and a run that needs `next`
    /// fit. Updates the estimates by the memory that the process holds.
    fn missing(&self, state: &mut State<S>, weights: u64, next: Need) -> u64 {
        if self.limit.is_none() {
            return 0;
        }
        state.ledger.observe((self.process.held)().bytes, next);
        state.ledger.missing(weights, next)
    }

    /// Returns the result of [`Residents::missing`] without changing the estimates.
    fn foresee(&self, state: &State<S>, weights: u64, next: Need) -> u64 {
        if self.limit.is_none() {
            return 0;
        }
        let mut ledger = state.ledger.clone();
        ledger.observe((self.process.held)().bytes, next);
        ledger.missing(weights, next)
    }
}

/// Returns the memory that the process holds, or 0 if the system does not report it.
fn held() -> Held {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kibibytes.unwrap_or(0) * 1024
    };
    Held { bytes: bytes("VmRSS:"), file_bytes: bytes("RssFile:") }
}

#[cfg(test)]
#[path = "residents_tests.rs"]
mod tests;
