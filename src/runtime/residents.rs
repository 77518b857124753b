//! The sessions of all executors of a process, under one memory limit.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
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

/// The part of the limit by which it may be exceeded where nothing is left that could go: sizes are
/// estimates, and a request is worth more than a tenth.
const TOLERANCE: u64 = 10;

/// Time to load a session before one was loaded: for one of any size, and for each byte of weights.
const LOAD_TIME: Duration = Duration::from_millis(1);
const LOAD_SECONDS_PER_BYTE: f64 = 1e-9;

/// The longest times that are believed, likewise: what takes longer was kept waiting.
const LONGEST_LOAD_TIME: Duration = Duration::from_millis(20);
const LONGEST_LOAD_SECONDS_PER_BYTE: f64 = 4.0 * LOAD_SECONDS_PER_BYTE;

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
}

#[derive(Debug)]
struct State<S> {
    sessions: HashMap<Key, Sessions<S>>,
    num_leased: usize,
    /// Counters of executors, the gone ones left out.
    counts: HashMap<u64, Residency>,
    num_executors: u64,
    /// What never gives way.
    pinned: HashSet<Key>,
    /// When networks were used, also those that are not here any more.
    uses: HashMap<Key, Uses>,
    /// How long what was loaded took to load, room for it included.
    load_times: HashMap<Key, Duration>,
    /// The same of all that was loaded lately, by byte.
    seconds_per_byte: f64,
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
}

/// When a network was used.
#[derive(Debug, Clone, Copy)]
struct Uses {
    last: u64,
    /// How many uses of any network lay between its last two; `None` where there was one.
    interval: Option<u64>,
}

impl Uses {
    /// Returns in how many uses from `now` it is expected again (LIRS, Jiang and Zhang 2002, §3):
    /// as long after its last use as that came after the one before, or, where it was not used for
    /// longer than that, in as much time again.
    fn distance(self, now: u64) -> u64 {
        self.interval.map_or(u64::MAX, |interval| interval.max(now - self.last))
    }
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
            pinned: HashSet::new(),
            uses: HashMap::new(),
            load_times: HashMap::new(),
            seconds_per_byte: LOAD_SECONDS_PER_BYTE,
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
        state.pinned.retain(|key| key.executor != executor);
        state.uses.retain(|key, _| key.executor != executor);
        state.load_times.retain(|key, _| key.executor != executor);
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

    /// Keeps the sessions of `key` from giving way to others.
    pub(super) fn pin(&self, key: Key) {
        self.lock().pinned.insert(key);
    }

    /// Returns whether there is a memory limit.
    pub(super) fn has_limit(&self) -> bool {
        self.limit.is_some()
    }

    /// Returns the time until each of `wanted`, with the bytes of its weights, is loaded.
    pub(super) fn load_times(&self, wanted: impl IntoIterator<Item = (Key, u64)>) -> Vec<Duration> {
        let state = self.lock();
        wanted.into_iter().map(|(key, bytes)| state.load_time(key, bytes)).collect()
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
        // Waiting for others is theirs: it says nothing about the next time.
        let start = Instant::now();
        let session = load()?;
        let mut state = self.lock();
        state.insert(key, bytes);
        state.learn_load_time(key, bytes, start.elapsed());
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

    /// Lets sessions go until `bytes` fit; waits for those that run if need be.
    fn make_room(&self, bytes: u64) -> Result<(), RuntimeError> {
        // What making and dropping sessions freed may not have been given back.
        let mut may_give_back = true;
        loop {
            let mut state = self.lock();
            let missing = self.missing(&state, bytes);
            if missing == 0 {
                return Ok(());
            }
            if may_give_back {
                drop(state);
                (self.process.give_back)();
                may_give_back = false;
                continue;
            }
            let gone = state.evict(missing);
            if gone.is_empty() {
                if state.num_leased > 0 && self.wait_for_return(state).is_some() {
                    continue;
                }
                let limit = self.limit.unwrap_or(u64::MAX);
                if missing <= limit / TOLERANCE {
                    return Ok(());
                }
                return Err(RuntimeError::MemoryLimit { bytes, missing, limit });
            }
            // It takes a while, during which others may run.
            drop(state);
            drop(gone);
            may_give_back = true;
        }
    }

    /// Lets sessions go where the process has grown over the limit by other things than sessions,
    /// such as activations, or pages of files that stay mapped.
    pub(super) fn trim(&self) {
        if self.limit.is_none() || self.missing(&self.lock(), 0) == 0 {
            return;
        }
        (self.process.give_back)();
        let mut state = self.lock();
        let missing = self.missing(&state, 0);
        let gone = if missing == 0 { Vec::new() } else { state.evict(missing) };
        drop(state);
        if !gone.is_empty() {
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
        let sessions = self.sessions.get_mut(&key)?;
        let session = sessions.idle.pop()?;
        sessions.num_leased += 1;
        self.num_leased += 1;
        self.use_now(key);
        Some(session)
    }

    fn use_now(&mut self, key: Key) {
        self.clock += 1;
        let now = self.clock;
        let uses = self.uses.entry(key).or_insert(Uses { last: now, interval: None });
        if uses.last < now {
            *uses = Uses { last: now, interval: Some(now - uses.last) };
        }
    }

    /// Adds a session that is leased.
    fn insert(&mut self, key: Key, bytes: u64) {
        self.use_now(key);
        self.bytes += bytes;
        self.num_leased += 1;
        let new = || Sessions { idle: Vec::new(), num_leased: 0, bytes };
        let sessions = self.sessions.entry(key).or_insert_with(new);
        sessions.num_leased += 1;
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

    /// Learns from a session that was made while no other ran, within bounds.
    fn learn_load_time(&mut self, key: Key, bytes: u64, time: Duration) {
        let own = 1;
        if self.num_leased > own {
            return;
        }
        let longest = LONGEST_LOAD_TIME + time_of(bytes, LONGEST_LOAD_SECONDS_PER_BYTE);
        let time = time.min(longest);
        self.load_times.insert(key, time);
        let rate =
            time.saturating_sub(LOAD_TIME).as_secs_f64() / time_of(bytes.max(1), 1.0).as_secs_f64();
        let rate = rate.min(LONGEST_LOAD_SECONDS_PER_BYTE);
        self.seconds_per_byte += (rate - self.seconds_per_byte) / 8.0;
    }

    fn load_time(&self, key: Key, bytes: u64) -> Duration {
        if self.sessions.contains_key(&key) {
            return Duration::ZERO;
        }
        let guess = || LOAD_TIME + time_of(bytes, self.seconds_per_byte);
        self.load_times.get(&key).copied().unwrap_or_else(guess)
    }

    /// Tells whether a session of `key` is not leased, and not the last of what is pinned.
    fn may_go(&self, key: Key) -> bool {
        let is_last = |sessions: &Sessions<S>| sessions.count() == 1 && self.pinned.contains(&key);
        let sessions = self.sessions.get(&key);
        sessions.is_some_and(|sessions| !sessions.idle.is_empty() && !is_last(sessions))
    }

    /// Removes sessions that are not leased, of so many bytes together or more if there are, those
    /// first that are expected to be used again last. Of equal ones it is the one used last: where
    /// the same networks are walked through again and again and there is no room for all, what
    /// stays is found again, while the least recently used one is always what is wanted next.
    fn evict(&mut self, bytes: u64) -> Vec<S> {
        let idle = self.sessions.iter().filter(|(key, _)| self.may_go(**key));
        let order = |key: &Key| {
            let uses = self.uses.get(key);
            uses.map_or((u64::MAX, 0), |uses| (uses.distance(self.clock), uses.last))
        };
        let mut idle: Vec<((u64, u64), Key, u64)> =
            idle.map(|(key, sessions)| (order(key), *key, sessions.bytes)).collect();
        idle.sort_unstable_by_key(|(order, ..)| std::cmp::Reverse(*order));
        let (mut freed, mut gone) = (0, Vec::new());
        for (_, key, own) in idle {
            while freed < bytes && self.may_go(key) {
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

/// Returns the time that `bytes` take at `seconds_per_byte`.
#[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^53 bytes")]
fn time_of(bytes: u64, seconds_per_byte: f64) -> Duration {
    Duration::from_secs_f64(bytes as f64 * seconds_per_byte)
}

/// Returns the bytes of memory that the process holds; 0 where the system does not tell.
fn held_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
#[path = "residents_tests.rs"]
mod tests;
