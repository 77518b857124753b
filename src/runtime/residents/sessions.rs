//! The loaded sessions, their use, and the order of their eviction.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::ledger::Ledger;

/// Assumed load time before any session was loaded. It has a part per session and a part per byte
/// of weights.
const LOAD_TIME: Duration = Duration::from_millis(1);
const LOAD_SECONDS_PER_BYTE: f64 = 1e-9;

/// Longest load times that are recorded, also per session and per byte. A longer time includes a
/// wait for other work.
const LONGEST_LOAD_TIME: Duration = Duration::from_millis(20);
const LONGEST_LOAD_SECONDS_PER_BYTE: f64 = 4.0 * LOAD_SECONDS_PER_BYTE;

/// Modules that an executor holds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Number of loaded modules.
    pub num_modules: u64,
    /// Bytes of the loaded modules' weights.
    pub weight_bytes: u64,
    /// Number of times that a module was loaded.
    pub num_loads: u64,
    /// Number of times that a module was evicted.
    pub num_evictions: u64,
}

/// Key of a network's sessions: the executor and the network's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) executor: u64,
    pub(crate) network: usize,
}

/// Memory that a network's session takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weights {
    /// Bytes of weights.
    pub(crate) bytes: u64,
    /// Bytes of tables that stay in their file. Their pages are in memory once they are read.
    pub(crate) table_bytes: u64,
}

/// The loaded sessions, and statistics of all networks that were loaded at some time.
#[derive(Debug)]
pub(crate) struct State<S> {
    pub(crate) sessions: HashMap<Key, Sessions<S>>,
    pub(crate) num_leased: usize,
    /// Keys of the sessions that are being created.
    pub(crate) loading: Vec<Key>,
    /// Counters of each live executor.
    pub(crate) counts: HashMap<u64, Residency>,
    pub(crate) num_executors: u64,
    /// Keys whose last session is never evicted.
    pub(crate) pinned: HashSet<Key>,
    /// Uses of networks, including evicted ones.
    pub(crate) uses: HashMap<Key, Uses>,
    /// Time that each network last took to load, excluding the time to make room for it.
    pub(crate) load_times: HashMap<Key, Duration>,
    /// Running average of the load time per byte of weights, in seconds; excludes the part per
    /// session.
    pub(crate) seconds_per_byte: f64,
    /// Number of uses so far.
    pub(crate) clock: u64,
    pub(crate) ledger: Ledger,
    /// Bytes of the table pages that were read, including those of evicted networks.
    pub(crate) pages: HashMap<Key, u64>,
    /// Number of runs since the ledger's estimates were last exact.
    pub(crate) num_unsettled: u32,
}

/// The sessions of a network, idle and leased.
#[derive(Debug)]
pub(crate) struct Sessions<S> {
    pub(crate) idle: Vec<S>,
    pub(crate) num_leased: usize,
    /// Memory that each session takes.
    pub(crate) weights: Weights,
    /// Bytes of mapped files in memory when the last session was created.
    pub(crate) files_before: u64,
}

/// Last uses of a network, counted in uses of any network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uses {
    last: u64,
    /// Number of uses of any network between its last two; `None` after a single use.
    interval: Option<u64>,
}

impl Uses {
    /// Returns the number of uses until the network is expected again (LIRS, Jiang and Zhang 2002,
    /// §3). It is the interval between the last two uses, or the time since the last use if that is
    /// longer. It is `u64::MAX` after a single use.
    fn distance(self, now: u64) -> u64 {
        self.interval.map_or(u64::MAX, |interval| interval.max(now - self.last))
    }
}

impl<S> State<S> {
    /// Creates a state without sessions.
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            sessions: HashMap::new(),
            num_leased: 0,
            loading: Vec::new(),
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

    /// Removes and returns the sessions of `executor`, and forgets its statistics.
    pub(crate) fn leave(&mut self, executor: u64) -> Vec<Sessions<S>> {
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
    pub(crate) fn take(&mut self, key: Key) -> Option<S> {
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

    /// Adds a new session, which is leased. The process held `file_bytes` of mapped files when it
    /// was created.
    pub(crate) fn insert(&mut self, key: Key, weights: Weights, file_bytes: u64) {
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

    /// Ends a lease. Returns the session if it is not kept.
    pub(crate) fn give_back(&mut self, key: Key, session: Option<S>, is_broken: bool) -> Option<S> {
        // The sessions of a dropped executor were removed.
        let Some(sessions) = self.sessions.get_mut(&key) else {
            return session;
        };
        sessions.num_leased -= 1;
        self.num_leased -= 1;
        self.ledger.put_back(sessions.weights.bytes);
        sessions.idle.extend(session);
        if is_broken { self.remove_idle(key) } else { None }
    }

    /// Removes the idle session of `key` that was used last, or returns `None` if none is idle.
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

    /// Records the load time of a session, limited to the longest times. Does nothing if another
    /// session was in use, which may have slowed the load.
    pub(crate) fn learn_load_time(&mut self, key: Key, bytes: u64, time: Duration) {
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

    /// Returns the time to load a session of `key` with `bytes` of weights; 0 if one is loaded.
    pub(crate) fn load_time(&self, key: Key, bytes: u64) -> Duration {
        if self.sessions.contains_key(&key) {
            return Duration::ZERO;
        }
        let guess = || LOAD_TIME + time_of(bytes, self.seconds_per_byte);
        self.load_times.get(&key).copied().unwrap_or_else(guess)
    }

    /// Returns whether a session of `key` may be evicted: it is idle and not the last of a pinned
    /// key.
    fn may_go(&self, key: Key) -> bool {
        let is_last = |sessions: &Sessions<S>| sessions.count() == 1 && self.pinned.contains(&key);
        let sessions = self.sessions.get(&key);
        sessions.is_some_and(|sessions| !sessions.idle.is_empty() && !is_last(sessions))
    }

    /// Returns whether a session of `key` reads a table that stays in its file.
    pub(crate) fn has_table(&self, key: Key) -> bool {
        self.sessions.get(&key).is_some_and(|sessions| sessions.weights.table_bytes > 0)
    }

    /// Records the bytes of table pages that a session of `key` reads, given `file_bytes` of mapped
    /// files in memory.
    pub(crate) fn learn_pages(&mut self, key: Key, file_bytes: u64) {
        if let Some(Sessions { weights, files_before, .. }) = self.sessions.get(&key) {
            let read = file_bytes.saturating_sub(*files_before).min(weights.table_bytes);
            let pages = self.pages.entry(key).or_default();
            *pages = read.max(*pages);
        }
    }

    /// Returns the bytes of the table pages that sessions of `key` have read so far.
    pub(crate) fn pages(&self, key: Key) -> u64 {
        self.pages.get(&key).copied().unwrap_or(0)
    }

    /// Evicts idle sessions of at least `bytes` in total, or all of them if they are smaller. The
    /// session that is expected again last goes first; of equal sessions, the one used last. This
    /// suits repeated walks through networks that do not all fit. The sessions that stay are found
    /// again, while the least recently used one is always needed next.
    pub(crate) fn evict(&mut self, bytes: u64) -> Vec<S> {
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

/// Returns the time for `bytes` at `seconds_per_byte`.
#[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^53 bytes")]
fn time_of(bytes: u64, seconds_per_byte: f64) -> Duration {
    Duration::from_secs_f64(bytes as f64 * seconds_per_byte)
}
