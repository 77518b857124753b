//! Statistics of a family's requests since it was loaded, in Triton's terms.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::serve::request::Report;

/// Number of times that an event happened, and its total time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of times.
    pub count: u64,
    /// Total time.
    pub time: Duration,
}

/// Tallies of the answered requests of one batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchTally {
    /// Conversion of texts into tokens, or of image files into pixels.
    pub preprocess: Tally,
    /// Runs of modules.
    pub compute: Tally,
}

/// Statistics of a family's requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Answered requests, from arrival to answer.
    pub answered: Tally,
    /// Requests without an answer, from arrival to end.
    pub failed: Tally,
    /// Waits for the inference thread.
    pub queue: Tally,
    /// Answered requests by batch size.
    pub batches: BTreeMap<usize, BatchTally>,
    /// Time of the last request's end, since the Unix epoch; `None` before the first.
    pub last: Option<Duration>,
}

/// Counter of a family's requests.
#[derive(Debug, Default)]
pub(crate) struct Counter(Mutex<Statistics>);

impl Tally {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    /// Returns the sum of two tallies.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, time: self.time + other.time }
    }
}

impl Statistics {
    /// Returns the number of texts or images that were answered.
    pub fn num_inputs(&self) -> u64 {
        self.batches.iter().map(|(size, batch)| *size as u64 * batch.compute.count).sum()
    }
}

impl Counter {
    /// Counts an answered request.
    pub(crate) fn answered(&self, report: &Report) {
        self.change(|statistics| {
            statistics.answered.add(report.latency);
            statistics.queue.add(report.queue);
            let batch = statistics.batches.entry(report.batch).or_default();
            batch.preprocess.add(report.preprocess);
            batch.compute.add(report.compute);
        });
    }

    /// Counts a request that ended without an answer after `time`.
    pub(crate) fn failed(&self, time: Duration) {
        self.change(|statistics| statistics.failed.add(time));
    }

    /// Returns the current statistics.
    pub(crate) fn read(&self) -> Statistics {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Statistics)) {
        let mut statistics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut statistics);
        statistics.last = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    }
}
