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
        statistics.last = unix_time();
    }
}

/// Returns the time since 1970 by the clock that can be set, which dates what is written. Returns
/// `None` if it is set to an earlier time.
pub fn unix_time() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Quality, QualitySource},
        serve::request::PlanSummary,
    };

    #[test]
    fn answers_count_by_the_size_of_their_request() {
        let ms = Duration::from_millis;
        let plan = PlanSummary {
            plan: "a[0..1]".into(),
            predicted_latency: ms(1),
            memory_bytes: 1,
            quality: Quality { value: 1.0, source: QualitySource::Measured },
        };
        let report = |batch| Report {
            plan: plan.clone(),
            batch,
            tokens: 1,
            total_tokens: batch,
            latency: ms(9),
            preprocess: ms(1),
            queue: ms(3),
            compute: ms(5),
            routed: Vec::new(),
        };
        let counter = Counter::default();
        assert_eq!(counter.read(), Statistics::default());
        [1, 1, 4].into_iter().for_each(|batch| counter.answered(&report(batch)));
        counter.failed(ms(2));
        let found = counter.read();
        assert_eq!(found.answered, Tally { count: 3, time: ms(27) });
        assert_eq!(found.failed, Tally { count: 1, time: ms(2) });
        assert_eq!(found.queue, Tally { count: 3, time: ms(9) });
        assert_eq!(found.batches[&1].compute, Tally { count: 2, time: ms(10) });
        assert_eq!(found.num_inputs(), 6);
        assert!(found.last.is_some());
        assert_eq!(found.answered.plus(found.failed), Tally { count: 4, time: ms(29) });
    }
}
