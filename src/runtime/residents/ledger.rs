//! The ledger of a process's memory under a limit. It is pure: the caller reports the memory that
//! the process holds.

/// Divisor of the limit: it may be exceeded by this fraction when nothing can be evicted. Sizes are
/// estimates, and a request is worth more than a tenth of the limit.
const TOLERANCE: u64 = 10;

/// Memory that a run needs at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Bytes of activations, which the C library may keep after the run.
    pub(crate) activations: u64,
    /// Bytes of activations and of the session that runs or is loaded.
    pub(crate) total: u64,
}

/// The memory of a process by purpose, in bytes.
///
/// Idle sessions take the memory that the rest leaves. A session in use is part of its run's need.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    limit: Option<u64>,
    /// Estimate of the memory that is neither weights nor activations.
    others: Option<u64>,
    /// Bytes of the weights of idle sessions.
    idle: u64,
    /// Bytes of the weights of sessions in use.
    leased: u64,
    /// Bytes of the weights of sessions that are being created. The process holds a part of them.
    loading: u64,
    /// Bytes of the caches of sequences.
    cached: u64,
    /// Sum of the needs of all runs.
    reserved: Need,
    num_reserved: usize,
}

impl Need {
    fn plus(self, other: Self) -> Self {
        let activations = self.activations.saturating_add(other.activations);
        Self { activations, total: self.total.saturating_add(other.total) }
    }
}

impl Ledger {
    /// Creates a ledger without sessions and runs.
    pub(crate) fn new(limit: Option<u64>) -> Self {
        let reserved = Need::default();
        Self {
            limit,
            others: None,
            idle: 0,
            leased: 0,
            loading: 0,
            cached: 0,
            reserved,
            num_reserved: 0,
        }
    }

    /// Returns the bytes of the weights of all sessions.
    pub(crate) fn weights(&self) -> u64 {
        self.idle + self.leased
    }

    /// Returns the bytes of the caches of sequences.
    pub(crate) fn caches(&self) -> u64 {
        self.cached
    }

    /// Adds the cache of a sequence.
    pub(crate) fn cache(&mut self, bytes: u64) {
        self.cached += bytes;
    }

    /// Removes the cache of a sequence.
    pub(crate) fn drop_cache(&mut self, bytes: u64) {
        self.cached = self.cached.saturating_sub(bytes);
    }

    /// Returns whether a run has reserved memory.
    pub(crate) fn has_runs(&self) -> bool {
        self.num_reserved > 0
    }

    /// Corrects the estimate of other memory by `held`, the bytes that the process holds. These may
    /// include any part of the activations of all runs and of `next`, in use or kept.
    pub(crate) fn observe(&mut self, held: u64, next: Need) {
        let most = held.saturating_sub(self.weights() + self.cached);
        let least = most.saturating_sub(self.reserved.plus(next).activations);
        self.others = Some(self.others.map_or(most, |others| others.clamp(least, most)));
    }

    /// Corrects the estimate of other memory after freed memory was returned to the system. `held`
    /// is then exact.
    pub(crate) fn settle(&mut self, held: u64) {
        if !self.has_runs() {
            self.others = None;
        }
        self.observe(held, Need::default());
    }

    /// Returns the bytes to evict before a run that needs `next` may begin beside the others. A new
    /// session for it takes `weights` bytes.
    pub(crate) fn missing(&self, weights: u64, next: Need) -> u64 {
        let Some(limit) = self.limit else {
            return 0;
        };
        let needed = self.reserved.plus(next);
        // Sessions may also be in use outside of a run.
        let sessions = self.leased + self.loading + weights;
        let running = needed.total.max(needed.activations + sessions);
        let others = self.others.unwrap_or(0);
        let kept = self.idle + self.cached;
        others.saturating_add(kept).saturating_add(running).saturating_sub(limit)
    }

    /// Returns whether the limit may be exceeded by `missing` bytes when nothing can be evicted.
    pub(crate) fn tolerates(&self, missing: u64) -> bool {
        self.limit.is_none_or(|limit| missing <= limit / TOLERANCE)
    }

    /// Adds a run, which [`Ledger::end`] removes.
    pub(crate) fn begin(&mut self, need: Need) {
        self.reserved = self.reserved.plus(need);
        self.num_reserved += 1;
    }

    /// Removes a run.
    pub(crate) fn end(&mut self, need: Need) {
        self.reserved.activations = self.reserved.activations.saturating_sub(need.activations);
        self.reserved.total = self.reserved.total.saturating_sub(need.total);
        self.num_reserved -= 1;
    }

    /// Adds a session of `bytes` that is being created, until [`Ledger::end_load`].
    pub(crate) fn begin_load(&mut self, bytes: u64) {
        self.loading += bytes;
    }

    /// Removes a session of `bytes` that was being created.
    pub(crate) fn end_load(&mut self, bytes: u64) {
        self.loading -= bytes;
    }

    /// Adds a new session of `bytes`, which is in use.
    pub(crate) fn load(&mut self, bytes: u64) {
        self.leased += bytes;
    }

    /// Marks an idle session of `bytes` as in use.
    pub(crate) fn take(&mut self, bytes: u64) {
        self.idle -= bytes;
        self.leased += bytes;
    }

    /// Marks a session of `bytes` in use as idle.
    pub(crate) fn put_back(&mut self, bytes: u64) {
        self.leased -= bytes;
        self.idle += bytes;
    }

    /// Removes idle sessions of `bytes` in total.
    pub(crate) fn drop_idle(&mut self, bytes: u64) {
        self.idle -= bytes;
    }

    /// Removes sessions in use, of `bytes` in total.
    pub(crate) fn drop_leased(&mut self, bytes: u64) {
        self.leased -= bytes;
    }
}
