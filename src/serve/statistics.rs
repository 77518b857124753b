//! What a family has answered since it was loaded, as Triton's statistics count it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Report;

/// How often something happened, and how long it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The time.
    pub time: Duration,
}

/// The answered requests of one batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchTally {
    /// Turning texts into tokens, or image files into pixels.
    pub preprocess: Tally,
    /// Running modules.
    pub compute: Tally,
}

/// What a family has answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests that were answered, from arrival to answer.
    pub answered: Tally,
    /// Requests that were not.
    pub failed: Tally,
    /// Waiting for the inference thread.
    pub queue: Tally,
    /// The answered requests by batch size.
    pub batches: BTreeMap<usize, BatchTally>,
    /// When the last request ended; `None` before the first.
    pub last: Option<Duration>,
}

/// Statistics that requests add to.
#[derive(Debug, Default)]
pub(super) struct Counter(Mutex<Statistics>);

impl Tally {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    /// Adds two tallies.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, time: self.time + other.time }
    }
}

impl Statistics {
    /// Returns the texts or images that were answered.
    pub fn num_inputs(&self) -> u64 {
        self.batches.iter().map(|(size, batch)| *size as u64 * batch.compute.count).sum()
    }
}

impl Counter {
    /// Counts a request that was answered.
    pub(super) fn answered(&self, report: &Report) {
        self.change(|statistics| {
            statistics.answered.add(report.latency);
            statistics.queue.add(report.queue);
            let batch = statistics.batches.entry(report.batch).or_default();
            batch.preprocess.add(report.preprocess);
            batch.compute.add(report.compute);
        });
    }

    /// Counts a request that was not answered after `time`.
    pub(super) fn failed(&self, time: Duration) {
        self.change(|statistics| statistics.failed.add(time));
    }

    /// Returns the statistics as they are now.
    pub(super) fn read(&self) -> Statistics {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Statistics)) {
        let mut statistics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut statistics);
        statistics.last = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    }
}
