//! Ratio between the time that batches take and the learned time of their modules.
//!
//! Two causes are kept apart. The *machine* may be faster or slower than when it was measured. Its
//! factor is learned from batches without neighbours alone, stays within [`MACHINE`], and is kept.
//! *Load* makes threads compete and answers wait. Its factor is learned from every batch and
//! answer, and forgotten within seconds (see [`Transient`]). This module reads no clock.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::follow::{Bounds, Follower, Rates, Transient};

/// Rates of a factor, which follows the middle of the times that batches take.
const FOLLOW: Rates = Rates { rise: 0.08, fall: 0.08 };

/// Rates of a margin, which settles at the 80th percentile of batches.
const CONSERVATIVE: Rates = Rates { rise: 0.1, fall: 0.025 };

/// Rates of a reserve, which settles at the 98th percentile of batches.
const RESERVE: Rates = Rates { rise: 0.3, fall: 0.002 };

/// Reserve before a batch has run: nothing is known of how much their times differ.
const UNKNOWN: f64 = 1.25;

/// Bounds of a margin and of a reserve.
const SPREAD: Bounds = Bounds { least: 1.0, most: 2.0 };

/// Bounds of the machine's factor.
const MACHINE: Bounds = Bounds { least: 0.25, most: 4.0 };

/// Bounds of the load's factor.
const LOAD: Bounds = Bounds { least: 0.5, most: 8.0 };

/// Time in seconds between a batch and its answers without load. Its rates settle at about the 90th
/// percentile of answers.
const ANSWERING: f64 = 1e-4;
const ANSWERING_RATES: Rates = Rates { rise: 0.18, fall: 0.02 };
const ANSWERING_BOUNDS: Bounds = Bounds { least: 1e-6, most: 0.1 };

/// Time for which a measurement without neighbours counts as current.
const FRESH: Duration = Duration::from_secs(1);

/// Times of a batch that ran.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lesson {
    /// Time that the batch's modules were known to take.
    pub(super) known: Duration,
    /// Time that the batch took.
    pub(super) measured: Duration,
    /// Whether no other request ran, waited or arrived meanwhile.
    pub(super) is_alone: bool,
}

/// Ratio between the current and the learned times of modules.
#[derive(Debug)]
pub(crate) struct Correction {
    machine: Machine,
    load: Load,
    /// Time in seconds between a batch and its answers.
    answering: Transient,
    /// Time at which a batch last ran without neighbours; `None` before the first.
    measured: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Machine {
    factor: Follower,
    margin: Follower,
    reserve: Follower,
}

#[derive(Debug)]
struct Load {
    factor: Transient,
    margin: Transient,
    reserve: Transient,
}

impl Default for Correction {
    fn default() -> Self {
        let (kept, passing) = (|| Follower::new(1.0), || Transient::new(1.0));
        Self {
            machine: Machine { factor: kept(), margin: kept(), reserve: Follower::new(UNKNOWN) },
            load: Load { factor: passing(), margin: passing(), reserve: passing() },
            answering: Transient::new(ANSWERING),
            measured: Mutex::default(),
        }
    }
}

impl Correction {
    /// Returns the machine's factor, which applies to modules without neighbours.
    pub(super) fn machine(&self) -> f64 {
        self.machine.factor.get()
    }

    /// Returns the ratio between a batch's time at `now` and the learned time of its modules.
    pub(crate) fn factor(&self, now: Instant) -> f64 {
        self.machine() * self.load.factor.get(now)
    }

    /// Returns the 80th percentile of the factor at `now`; a chosen plan must fit with it.
    pub(super) fn conservative(&self, now: Instant) -> f64 {
        self.factor(now) * self.machine.margin.get().max(self.load.margin.get(now))
    }

    /// Returns the 98th percentile of the ratio between a batch's time at `now` and its
    /// conservative latency.
    pub(crate) fn reserve(&self, now: Instant) -> f64 {
        self.machine.reserve.get().max(self.load.reserve.get(now))
    }

    /// Returns the time from a batch's end to its answers, at `now`.
    pub(crate) fn answering(&self, now: Instant) -> Duration {
        Duration::from_secs_f64(self.answering.get(now))
    }

    /// Returns whether a batch ran without neighbours lately, so that learned times are current.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        let measured = *self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.is_some_and(|at| now.saturating_duration_since(at) < FRESH)
    }

    /// Learns from `lesson`, a batch that ended at `now`.
    pub(super) fn learn(&self, now: Instant, lesson: Lesson) {
        let ratio = lesson.measured.as_secs_f64() / lesson.known.as_secs_f64().max(1e-6);
        if lesson.is_alone {
            let Machine { factor, margin, reserve } = &self.machine;
            let conservative = factor.get() * margin.get();
            reserve.follow(ratio / conservative, RESERVE, SPREAD);
            margin.follow(ratio / factor.get(), CONSERVATIVE, SPREAD);
            factor.follow(ratio, FOLLOW, MACHINE);
            *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
        let Load { factor, margin, reserve } = &self.load;
        let ratio = ratio / self.machine();
        let middle = factor.get(now);
        reserve.follow(now, ratio / (middle * margin.get(now)), RESERVE, SPREAD);
        margin.follow(now, ratio / middle, CONSERVATIVE, SPREAD);
        factor.follow(now, ratio, FOLLOW, LOAD);
    }

    /// Learns from a request that was answered at `now`, `time` after the end of its batch.
    pub(crate) fn learn_answering(&self, now: Instant, time: Duration) {
        self.answering.follow(now, time.as_secs_f64(), ANSWERING_RATES, ANSWERING_BOUNDS);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::serve::planner::follow::FORGOTTEN;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn lesson(known: u64, measured: u64, is_alone: bool) -> Lesson {
        Lesson { known: ms(known), measured: ms(measured), is_alone }
    }

    #[test]
    fn a_slower_machine_is_learned_and_unlearned() {
        let (correction, now) = (Correction::default(), Instant::now());
        (0..200).for_each(|_| correction.learn(now, lesson(10, 15, true)));
        assert!((correction.factor(now) - 1.5).abs() < 0.01, "{}", correction.factor(now));
        (0..400).for_each(|_| correction.learn(now, lesson(10, 10, true)));
        assert!((correction.factor(now) - 1.0).abs() < 0.01, "{}", correction.factor(now));
    }

    #[test]
    fn what_neighbours_cost_counts_while_they_are_there() {
        let (correction, now) = (Correction::default(), Instant::now());
        (0..400).for_each(|_| correction.learn(now, lesson(10, 30, false)));
        assert!((correction.factor(now) - 3.0).abs() < 0.03, "{}", correction.factor(now));
        assert!((correction.machine() - 1.0).abs() < 1e-12);
        assert!((correction.factor(now + FORGOTTEN) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_reserve_covers_what_is_seldom_longer() {
        let (correction, now) = (Correction::default(), Instant::now());
        for index in 0..5_000 {
            let measured = if index % 25 == 0 { 14 } else { 10 };
            correction.learn(now, lesson(10, measured, true));
        }
        let longest = correction.conservative(now) * correction.reserve(now);
        assert!((1.3..1.5).contains(&longest), "{longest}");
        assert!(correction.conservative(now) < 1.1, "{}", correction.conservative(now));
    }

    #[test]
    fn what_one_batch_in_five_exceeds_is_told_apart_from_the_middle() {
        let (correction, now) = (Correction::default(), Instant::now());
        for index in 0..5_000_u64 {
            correction.learn(now, lesson(10, 8 + (index * 7) % 5, true));
        }
        assert!((0.94..1.06).contains(&correction.factor(now)), "{}", correction.factor(now));
        assert!(
            (1.05..1.25).contains(&correction.conservative(now)),
            "{}",
            correction.conservative(now)
        );
    }

    #[test]
    fn one_absurd_batch_moves_it_within_its_bounds() {
        let (correction, now) = (Correction::default(), Instant::now());
        correction.learn(now, lesson(0, 3_600_000, true));
        assert!(correction.factor(now) <= MACHINE.most * LOAD.most);
        (0..500).for_each(|_| correction.learn(now, lesson(1_000, 0, true)));
        assert!(correction.factor(now) >= MACHINE.least * LOAD.least);
    }

    proptest! {
        /// Checks that load leaves no trace after a rest. The correction then equals that of a
        /// server on the same machine that never saw the load.
        #[test]
        fn after_a_rest_nothing_of_the_load_is_left(
            trace in prop::collection::vec(
                (1..200_u64, 1..2_000_u64, any::<bool>(), 0..500_u64),
                0..300,
            ),
        ) {
            let (loaded, calm) = (Correction::default(), Correction::default());
            let mut now = Instant::now();
            for (known, measured, is_alone, gap) in trace {
                now += ms(gap);
                loaded.learn(now, lesson(known, measured, is_alone));
                loaded.learn_answering(now, ms(measured));
                if is_alone {
                    calm.learn(now, lesson(known, measured, true));
                }
            }
            let rested = now + FORGOTTEN;
            for read in [Correction::factor, Correction::conservative, Correction::reserve] {
                prop_assert_eq!(read(&loaded, rested).to_bits(), read(&calm, rested).to_bits());
            }
            prop_assert_eq!(loaded.answering(rested), calm.answering(rested));
        }
    }
}
