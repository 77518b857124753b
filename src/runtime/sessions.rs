//! The sessions that are loaded: which are in use, and which go first.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::ledger::Ledger;

/// Time to load a session before one was loaded: for one of any size, and for each byte of weights.
const LOAD_TIME: Duration = Duration::from_millis(1);
const LOAD_SECONDS_PER_BYTE: f64 = 1e-9;

/// The longest times that are believed, likewise: what takes longer was kept waiting.
const LONGEST_LOAD_TIME: Duration = Duration::from_millis(20);
const LONGEST_LOAD_SECONDS_PER_BYTE: f64 = 4.0 * LOAD_SECONDS_PER_BYTE;

/// What an executor holds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Loaded modules.
    pub num_modules: u64,
    /// The bytes of their weights.
    pub weight_bytes: u64,
    /// How many times a module was loaded.
    pub num_loads: u64,
    /// How many times a module gave way to another.
    pub num_evictions: u64,
}

/// Whose session, and of which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) executor: u64,
    pub(super) network: usize,
}

/// What the session of a network takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weights {
    /// Bytes of weights.
    pub(super) bytes: u64,
    /// Bytes of tables that stay in their file, whose pages are in memory once they were read.
    pub(super) table_bytes: u64,
}

/// Every loaded session, and what is known of those that are not loaded.
#[derive(Debug)]
pub(super) struct State<S> {
    pub(super) sessions: HashMap<Key, Sessions<S>>,
    pub(super) num_leased: usize,
    /// Counters of executors, the gone ones left out.
    pub(super) counts: HashMap<u64, Residency>,
    pub(super) num_executors: u64,
    /// What never gives way.
    pub(super) pinned: HashSet<Key>,
    /// When networks were used, also those that are not here any more.
    pub(super) uses: HashMap<Key, Uses>,
    /// How long what was loaded took to load, room for it included.
    pub(super) load_times: HashMap<Key, Duration>,
    /// The same of all that was loaded lately, by byte.
    pub(super) seconds_per_byte: f64,
    /// Counts uses.
    pub(super) clock: u64,
    pub(super) ledger: Ledger,
    /// Bytes of the pages of tables that were read, also of those that are not here any more.
    pub(super) pages: HashMap<Key, u64>,
    /// Number of runs since the ledger's estimates were exact.
    pub(super) num_unsettled: u32,
}

/// The sessions of a network.
#[derive(Debug)]
pub(super) struct Sessions<S> {
    pub(super) idle: Vec<S>,
    pub(super) num_leased: usize,
    /// What each takes.
    pub(super) weights: Weights,
    /// Bytes of files in memory when the last one was made.
    pub(super) files_before: u64,
}

/// When a network was used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uses {
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

impl<S> State<S> {
    /// Creates the state in which nothing is loaded.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            sessions: HashMap::new(),
            num_leased: 0,
            counts: HashMap::new(),
            num_executors: 0,
            pinned: HashSet::new(),
            uses: HashMap::new(),
            load_times: HashMap::new(),
            seconds_per_byte: LOAD_SECONDS_PER_BYTE,
            clock: 0,
            ledger: Ledger::new(limit),
            pages: HashMap::new(),
            num_unsettled: 0,
        }
    }

    /// Drops the sessions of an executor.
    pub(super) fn leave(&mut self, executor: u64) -> Vec<Sessions<S>> {
        self.counts.remove(&executor);
        self.pinned.retain(|key| key.executor != executor);
        self.uses.retain(|key, _| key.executor != executor);
        self.load_times.retain(|key, _| key.executor != executor);
        self.pages.retain(|key, _| key.executor != executor);
        let is_own = |key: &Key| key.executor == executor;
        let gone: Vec<_> =
            self.sessions.extract_if(|key, _| is_own(key)).map(|(_, gone)| gone).collect();
        for sessions in &gone {
            let bytes = sessions.weights.bytes;
            self.ledger.drop_idle(bytes * sessions.idle.len() as u64);
            self.ledger.drop_leased(bytes * sessions.num_leased as u64);
            self.num_leased -= sessions.num_leased;
        }
        gone
    }
}

impl<S> Sessions<S> {
    fn count(&self) -> u64 {
        self.idle.len() as u64 + self.num_leased as u64
    }
}

impl<S> State<S> {
    pub(super) fn take(&mut self, key: Key) -> Option<S> {
        let sessions = self.sessions.get_mut(&key)?;
        let session = sessions.idle.pop()?;
        sessions.num_leased += 1;
        self.num_leased += 1;
        self.ledger.take(sessions.weights.bytes);
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

    /// Adds a session that is leased, made when the process held `file_bytes` of files.
    pub(super) fn insert(&mut self, key: Key, weights: Weights, file_bytes: u64) {
        self.use_now(key);
        self.ledger.load(weights.bytes);
        self.num_leased += 1;
        let new = || Sessions { idle: Vec::new(), num_leased: 0, weights, files_before: 0 };
        let sessions = self.sessions.entry(key).or_insert_with(new);
        sessions.files_before = file_bytes;
        sessions.num_leased += 1;
        let counts = self.counts.entry(key.executor).or_default();
        counts.num_modules += 1;
        counts.num_loads += 1;
        counts.weight_bytes += weights.bytes;
    }

    /// Ends a lease; returns the session where it does not stay.
    pub(super) fn give_back(&mut self, key: Key, session: Option<S>, is_broken: bool) -> Option<S> {
        // The sessions of an executor that is gone are not here.
        let Some(sessions) = self.sessions.get_mut(&key) else {
            return session;
        };
        sessions.num_leased -= 1;
        self.num_leased -= 1;
        self.ledger.put_back(sessions.weights.bytes);
        sessions.idle.extend(session);
        if is_broken { self.remove_idle(key) } else { None }
    }

    /// Removes the session of `key` that was used last and is not leased.
    fn remove_idle(&mut self, key: Key) -> Option<S> {
        let sessions = self.sessions.get_mut(&key)?;
        let session = sessions.idle.pop()?;
        let bytes = sessions.weights.bytes;
        if sessions.count() == 0 {
            self.sessions.remove(&key);
        }
        self.ledger.drop_idle(bytes);
        if let Some(counts) = self.counts.get_mut(&key.executor) {
            counts.num_modules -= 1;
            counts.weight_bytes -= bytes;
        }
        Some(session)
    }

    /// Learns from a session that was made while no other ran, within bounds.
    pub(super) fn learn_load_time(&mut self, key: Key, bytes: u64, time: Duration) {
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

    /// Returns the time to load a session of `key`, whose weights take `bytes`.
    pub(super) fn load_time(&self, key: Key, bytes: u64) -> Duration {
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

    /// Returns whether a session of `key` reads a table that stays in its file.
    pub(super) fn has_table(&self, key: Key) -> bool {
        self.sessions.get(&key).is_some_and(|sessions| sessions.weights.table_bytes > 0)
    }

    /// Takes note of how many pages of its table a session reads, of `file_bytes` in memory.
    pub(super) fn learn_pages(&mut self, key: Key, file_bytes: u64) {
        if let Some(Sessions { weights, files_before, .. }) = self.sessions.get(&key) {
            let read = file_bytes.saturating_sub(*files_before).min(weights.table_bytes);
            let pages = self.pages.entry(key).or_default();
            *pages = read.max(*pages);
        }
    }

    /// Returns the bytes of the pages of its table that a session of `key` has read so far.
    pub(super) fn pages(&self, key: Key) -> u64 {
        self.pages.get(&key).copied().unwrap_or(0)
    }

    /// Removes sessions that are not leased, of so many bytes together or more if there are, those
    /// first that are expected to be used again last. Of equal ones it is the one used last: where
    /// the same networks are walked through again and again and there is no room for all, what
    /// stays is found again, while the least recently used one is always what is wanted next.
    pub(super) fn evict(&mut self, bytes: u64) -> Vec<S> {
        let order = |key: &Key| {
            let uses = self.uses.get(key);
            uses.map_or((u64::MAX, 0), |uses| (uses.distance(self.clock), uses.last))
        };
        let idle = self.sessions.iter().filter(|(key, _)| bytes > 0 && self.may_go(**key));
        let mut idle: Vec<((u64, u64), Key, u64)> = idle
            .map(|(key, sessions)| (order(key), *key, sessions.weights.bytes + self.pages(*key)))
            .collect();
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
