//! The sessions of all executors of a process, under one memory limit.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    RuntimeError,
    ledger::Need,
    session::ModuleSession,
    sessions::{Key, Residency, State, Weights},
};
use crate::tensor::{MappedApart, give_back_freed_memory, reuse_freed_memory};

/// Time for which a session that another thread has leased, or a run's end, is waited for before
/// the limit is taken for too low.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Fraction of the limit, as a divisor, of freed memory that is kept for the next run.
const KEPT_SHARE: u64 = 32;

/// Number of runs after which the estimate of other memory is made exact again under pressure.
const RUNS_UNTIL_SETTLED: u32 = 8;

/// Every loaded session. Those that run are leased; of the others those go that are expected to be
/// used again last when another needs their place. Of a network there are as many as run at once,
/// or as there is room for.
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
    /// Held while a run waits for memory, so that smaller ones do not overtake it for ever.
    turn: Mutex<()>,
}

/// What is asked of the system about the process.
#[derive(Debug, Clone, Copy)]
struct Process {
    /// Tells what it holds.
    held: fn() -> Held,
    /// Gives back what was freed.
    give_back: fn(),
}

/// Memory that the process holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Bytes of everything.
    bytes: u64,
    /// Bytes of mapped files among them.
    file_bytes: u64,
}

/// Memory that a run may take, until it is dropped.
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
        if state.has_table(self.key) {
            state.learn_pages(self.key, (self.residents.process.held)().file_bytes);
        }
        let broken = state.give_back(self.key, self.session.take(), std::thread::panicking());
        // It was loaded in the place of its run's activations, which are to come.
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
    fn of_process(limit: Option<u64>, process: Process) -> Self {
        let (returned, loading, turn) = (Condvar::new(), Mutex::default(), Mutex::default());
        Self { limit, process, state: Mutex::new(State::new(limit)), returned, loading, turn }
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
        let gone = self.lock().leave(executor);
        drop(gone);
    }

    /// Returns what an executor holds.
    pub(super) fn residency(&self, executor: u64) -> Residency {
        self.lock().counts.get(&executor).copied().unwrap_or_default()
    }

    /// Returns the limit in bytes, or `None` without one.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Returns whether a run that needs `need` can begin while all sessions stay.
    pub(super) fn has_room(&self, need: Need) -> bool {
        self.foresee(&self.lock(), 0, need) == 0
    }

    /// Tells whether there is a session of `key`.
    pub(super) fn has(&self, key: Key) -> bool {
        self.lock().sessions.contains_key(&key)
    }

    /// Keeps the sessions of `key` from giving way to others.
    pub(super) fn pin(&self, key: Key) {
        self.lock().pinned.insert(key);
    }

    /// Returns the time until each of `wanted`, with the bytes of its weights, is loaded.
    pub(super) fn load_times(&self, wanted: impl IntoIterator<Item = (Key, u64)>) -> Vec<Duration> {
        let state = self.lock();
        wanted.into_iter().map(|(key, bytes)| state.load_time(key, bytes)).collect()
    }

    /// Reserves memory for a run; sessions that are not leased give way to it, and the end of other
    /// runs is waited for if need be.
    ///
    /// # Errors
    ///
    /// Fails when it does not fit under the limit by itself.
    pub(super) fn reserve(&self, need: Need) -> Result<Reserve<'_, S>, RuntimeError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle_in_time(need);
        let mut state = self.make_room(0, need, true)?;
        state.ledger.begin(need);
        drop(state);
        Ok(Reserve { residents: self, need })
    }

    /// Leases a session; makes it with `load`, after making room for its weights, where none is
    /// idle. Another one beside those that run is made where nothing has to go for it.
    ///
    /// # Errors
    ///
    /// Fails when it does not fit under the limit by itself, and where `load` fails.
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
        let _single = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have made it, or returned it, in the meantime.
        if let Some(session) = self.lock().take(key) {
            return Ok(lease(session));
        }
        let pages = Need { activations: 0, total: self.lock().pages(key) };
        drop(self.make_room(weights.bytes, pages, false)?);
        let apart = self.limit.map(|_| MappedApart::begin());
        // Waiting for others is theirs: it says nothing about the next time.
        let start = Instant::now();
        let session = load()?;
        drop(apart);
        let files = self.limit.map_or(0, |_| (self.process.held)().file_bytes);
        let mut state = self.lock();
        state.insert(key, weights, files);
        state.learn_load_time(key, weights.bytes, start.elapsed());
        drop(state);
        Ok(lease(session))
    }

    /// Takes an idle session; waits for one that runs where there is no room for another.
    fn take_or_wait(&self, key: Key, bytes: u64) -> Option<S> {
        let mut state = self.lock();
        loop {
            if let Some(session) = state.take(key) {
                return Some(session);
            }
            let has_room = || self.foresee(&state, bytes, Need::default()) == 0;
            if !state.sessions.contains_key(&key) || has_room() {
                return None;
            }
            state = self.wait_for_return(state)?;
        }
    }

    /// Waits until a lease or a run ends; `None` where that takes too long.
    fn wait_for_return<'a>(
        &self,
        state: MutexGuard<'a, State<S>>,
    ) -> Option<MutexGuard<'a, State<S>>> {
        let waited = self.returned.wait_timeout(state, LONGEST_WAIT);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out()).then_some(state)
    }

    /// Evicts sessions until one of `weights` bytes, and what needs `next`, fit; waits for sessions
    /// in use if need be, and for other runs if `next` is a run.
    fn make_room(
        &self,
        weights: u64,
        next: Need,
        is_run: bool,
    ) -> Result<MutexGuard<'_, State<S>>, RuntimeError> {
        // What making and dropping sessions freed may not have been given back.
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
                // It takes a while, during which others may run.
                drop(state);
                drop(gone);
                may_give_back = true;
                continue;
            }
            let waits = state.num_leased > 0 || is_run && state.ledger.has_runs();
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

    /// Gives back what was freed, after which estimates are exact.
    fn settle(&self) {
        (self.process.give_back)();
        let mut state = self.lock();
        state.num_unsettled = 0;
        let held = (self.process.held)().bytes;
        state.ledger.settle(held);
    }

    /// Settles after some runs where one that needs `next` may be too much: memory that the process
    /// took for other things could so far be memory kept for activations.
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

    /// Lets sessions go where the process has grown over the limit by other things than sessions,
    /// such as pages of files that stay mapped.
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

    /// Returns how much must go before a session of `weights` bytes and a run that needs `next` fit
    /// under the limit, after looking at what the process holds.
    fn missing(&self, state: &mut State<S>, weights: u64, next: Need) -> u64 {
        if self.limit.is_none() {
            return 0;
        }
        state.ledger.observe((self.process.held)().bytes, next);
        state.ledger.missing(weights, next)
    }

    /// Returns what [`Residents::missing`] does, and leaves the estimates alone.
    fn foresee(&self, state: &State<S>, weights: u64, next: Need) -> u64 {
        if self.limit.is_none() {
            return 0;
        }
        let mut ledger = state.ledger.clone();
        ledger.observe((self.process.held)().bytes, next);
        ledger.missing(weights, next)
    }
}

/// Returns the memory that the process holds; 0 where the system does not tell.
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
