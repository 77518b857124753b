//! Admission, order and batches of what waits for the inference threads.
//!
//! The scheduler is pure: the time is an argument, and it runs nothing. [`Scheduler::step`] takes
//! the items that may run together. Their number and plan are chosen outside, without its lock, and
//! [`Scheduler::commit`] ends the step.

use std::time::{Duration, Instant};

use super::{
    strictness::Strictness,
    waiting::{Expected, Need, Rank, Reserved, Share, Taken, Threads, Waiting},
};
use crate::serve::planner::follow::{Bounds, Rates, Transient};

/// Time for which overlapping requests may be the reason that later ones are late or refused.
const LATELY: Duration = Duration::from_millis(100);

/// Rates and bounds of the ratio between the time until a job is done, without what better plans
/// than the fastest were given, and the expected time. It settles at about the 90th percentile.
const STRETCH_RATES: Rates = Rates { rise: 0.09, fall: 0.01 };
const STRETCH_BOUNDS: Bounds = Bounds { least: 1.0, most: 16.0 };

/// Factor of room kept for delays between a job's admission and its turn. A job that ends at the
/// last moment is late as often as not.
const HEADROOM: f64 = 1.4;

/// Fraction of a batch's allowance that remains while requests that any plan could answer are
/// refused. A worse answer is worth more than a refusal.
const HURRY: f64 = 0.5;

/// Item that waits to be run.
pub(crate) trait Work {
    /// Returns the priority and the deadline.
    fn rank(&self) -> Rank;

    /// Returns the least time of the item as its part of a full batch.
    fn least(&self) -> Duration;

    /// Returns whether no one waits for the item any more.
    fn is_abandoned(&self) -> bool;

    /// Returns whether the item may run with `members`.
    fn joins(&self, members: &[&Self]) -> bool;

    /// Returns the expectation at the item's admission.
    fn promise(&self) -> &Promise;

    /// Returns whether the item must be done by its deadline.
    fn has_budget(&self) -> bool;
}

/// Expectation of a request at its admission.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    pub(crate) admitted: Instant,
    /// Time until the request's batch is done, if everything before it takes the least time.
    pub(crate) least: Duration,
    /// Whether no request came beside another one lately.
    pub(crate) is_alone: bool,
    /// Time that had been given to better plans than the fastest before the admission.
    pub(crate) given: Duration,
}

impl Promise {
    /// Returns the ratio between the time that the request took until `now` and the expected time.
    /// What was `given` to better plans meanwhile does not count: it was spare time, and another
    /// request would have got it.
    fn ratio(&self, now: Instant, given: Duration) -> f64 {
        let taken = now.saturating_duration_since(self.admitted);
        let taken = taken.saturating_sub(given.saturating_sub(self.given));
        taken.as_secs_f64() / self.least.as_secs_f64().max(1e-6)
    }
}

/// Reason why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full.
    Full {
        /// Largest number of requests that the queue holds.
        limit: usize,
        /// Time until everything that waits may be done.
        backlog: Duration,
    },
    /// The request would be late, or make another one late.
    Late {
        /// Time until everything that waits may be done.
        backlog: Duration,
    },
}

/// A request that asks to be admitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) rank: Rank,
    pub(crate) need: Need,
    /// Whether the request must be done by its deadline.
    pub(crate) has_budget: bool,
    /// Whether any plan may answer the request.
    pub(crate) is_free: bool,
}

/// Resources of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Number of threads without work, including the one that asks.
    pub(crate) num_free: usize,
}

/// Items of a step, of which a number is still to be chosen.
#[derive(Debug)]
pub(crate) struct StepPlan<T> {
    /// Time at which the items were taken.
    pub(crate) now: Instant,
    pub(crate) taken: Taken<T>,
    /// Whether no other item waits or runs.
    pub(crate) is_only: bool,
}

/// Start of a batch, which the thread hands back at the batch's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    at: Instant,
    /// Time that was given to better plans until the batch's end, this batch's included.
    given: Duration,
}

/// Waiting items, running batches, and the estimates that are learned from them.
#[derive(Debug)]
pub(crate) struct Scheduler<T> {
    waiting: Waiting<T>,
    /// Largest number of items that wait.
    limit: usize,
    /// Time at which each thread's batch is expected to be done; `None` for a thread that has
    /// ended.
    busy_until: Vec<Option<Instant>>,
    /// Time of the last refusal of a request that any plan could have answered. The request must
    /// have had time for more than one batch.
    hurried: Option<Instant>,
    strictness: Strictness,
    /// Ratio between the time until a job is done and the expected time. Preparing, answering and
    /// other families take the processor as well.
    stretch: Transient,
    /// Time that was given to better plans than the fastest, as a delay of what waits.
    given: Duration,
    /// Number of running batches.
    num_running: usize,
    /// Time at which a request last arrived or was refused, or a batch ran beside other work.
    disturbed: Option<Instant>,
    /// Time at which a request last arrived beside another.
    crowded: Option<Instant>,
}

impl<T: Work> Scheduler<T> {
    /// Creates a scheduler for `num_threads` idle threads, with which at most `limit` items wait.
    pub(crate) fn new(now: Instant, limit: usize, num_threads: usize) -> Self {
        Self {
            waiting: Waiting::new(),
            limit,
            busy_until: vec![Some(now); num_threads],
            hurried: None,
            strictness: Strictness::default(),
            stretch: Transient::new(1.0),
            given: Duration::ZERO,
            num_running: 0,
            disturbed: None,
            crowded: None,
        }
    }

    /// Admits a request before any work is done for it, and reserves its place.
    ///
    /// # Errors
    ///
    /// Fails when `limit` items wait. Fails when a request with a budget would be late even if
    /// everything before it takes the least time. If nothing waits and a thread is idle, no request
    /// is too late: its plan decides.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        candidate: Candidate,
    ) -> Result<(Reserved, Promise), Refusal> {
        self.disturbed = Some(now);
        self.drop_abandoned();
        if self.waiting.len() > 0 || self.num_running > 0 {
            self.crowded = Some(now);
        }
        let is_alone = self.crowded.is_none_or(|crowded| now - crowded >= LATELY);
        if self.waiting.len() >= self.limit {
            return Err(Refusal::Full { limit: self.limit, backlog: self.backlog(now) });
        }
        let start = self.waiting.start_of(&self.free_at(now), candidate.rank).unwrap_or(now);
        let wait = start.saturating_duration_since(now);
        if candidate.has_budget && self.is_busy(now) {
            self.check_room(now, wait, candidate)?;
        }
        let reserved = self.waiting.reserve(candidate.rank, candidate.need.least);
        let least = wait + candidate.need.alone;
        let promise = Promise { admitted: now, least, is_alone, given: self.given };
        Ok((reserved, promise))
    }

    /// Gives up the place of a request that is not queued. The time until then is a lesson only if
    /// it is too long.
    pub(crate) fn give_up(&mut self, now: Instant, reserved: Reserved, promise: &Promise) {
        self.waiting.release(reserved);
        if promise.ratio(now, self.given) > self.stretch.get(now) {
            self.learn_stretch(now, promise, self.given);
        }
    }

    /// Queues `item` in the place reserved for it.
    pub(crate) fn push(&mut self, now: Instant, reserved: Reserved, item: T) {
        self.disturbed = Some(now);
        self.waiting.release(reserved);
        self.waiting.push(item.rank(), item.least(), item);
    }

    /// Takes the items that run next, or returns `None` if none is ready.
    pub(crate) fn step(&mut self, now: Instant, capacity: &Capacity) -> Option<StepPlan<T>> {
        self.drop_abandoned();
        let is_only = self.waiting.len() == 1 && self.num_running == 0;
        let num_all = self.busy_until.iter().flatten().count();
        let threads = Threads { num_all, num_free: capacity.num_free };
        let mut taken =
            self.waiting.take(now, threads, |members: &[&T], item: &T| item.joins(members))?;
        if self.hurried.is_some_and(|since| now - since < LATELY) {
            let hurry = |share: &mut Share| share.allowance = share.allowance.mul_f64(HURRY);
            taken.shares.iter_mut().for_each(hurry);
        }
        Some(StepPlan { now, taken, is_only })
    }

    /// Ends a step: removes the first `size` of its items and returns them. The others wait again.
    /// `is_late` is whether the first item was late at its turn.
    pub(crate) fn commit(&mut self, plan: StepPlan<T>, size: usize, is_late: bool) -> Vec<T> {
        let StepPlan { now, taken, .. } = plan;
        let items = self.waiting.settle(taken, size);
        match is_late {
            true => {
                self.strictness.raise(now);
                let learn = |item: &T| self.learn_stretch(now, item.promise(), self.given);
                items.iter().for_each(learn);
            }
            false => self.strictness.lower(),
        }
        items
    }

    /// Notes that `thread` runs a batch that is expected to take `expected`.
    pub(crate) fn begin(&mut self, now: Instant, thread: usize, expected: Expected) -> Begun {
        let Expected { time, spare } = expected;
        self.busy_until[thread] = Some(now + time);
        let begun = Begun { at: now, given: self.given + spare };
        let num_threads = self.busy_until.iter().flatten().count();
        self.given += spare / u32::try_from(num_threads).unwrap_or(u32::MAX);
        self.num_running += 1;
        if self.num_running > 1 || self.waiting.len() > 0 {
            self.disturbed = Some(now);
        }
        begun
    }

    /// Notes that `thread` has run `items`. Returns whether no other request ran, waited or arrived
    /// meanwhile.
    pub(crate) fn end(&mut self, now: Instant, thread: usize, begun: Begun, items: &[T]) -> bool {
        self.busy_until[thread] = Some(now);
        self.num_running -= 1;
        for item in items.iter().filter(|item| item.has_budget()) {
            self.learn_stretch(now, item.promise(), begun.given);
        }
        self.is_undisturbed_since(begun.at)
    }

    /// Notes that `thread` has ended. Returns whether it was the last one.
    pub(crate) fn end_thread(&mut self, thread: usize) -> bool {
        self.busy_until[thread] = None;
        let is_last = self.busy_until.iter().all(Option::is_none);
        if is_last {
            self.waiting = Waiting::new();
        }
        is_last
    }

    /// Returns the number of items that wait and of reserved places.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the items that wait, in any order.
    pub(crate) fn items(&self) -> impl Iterator<Item = &T> {
        self.waiting.items()
    }

    /// Returns the number of running batches.
    pub(crate) fn num_running(&self) -> usize {
        self.num_running
    }

    /// Returns whether no request ran, waited or arrived since `begun`.
    pub(crate) fn was_quiet_since(&self, begun: Instant) -> bool {
        self.num_running == 0 && self.is_undisturbed_since(begun)
    }

    /// Returns the time until everything that waits may be done.
    pub(crate) fn backlog(&self, now: Instant) -> Duration {
        let done = self.waiting.done_at(&self.free_at(now));
        done.map_or(Duration::ZERO, |done| done.saturating_duration_since(now))
    }

    /// Returns whether no request arrived since `begun`, and no batch ran beside other work.
    fn is_undisturbed_since(&self, begun: Instant) -> bool {
        self.disturbed.is_none_or(|disturbed| disturbed < begun)
    }

    /// Returns whether a request waits, or no thread is idle.
    fn is_busy(&self, now: Instant) -> bool {
        let is_idle = |until: &Instant| *until <= now;
        self.waiting.len() > 0 || !self.busy_until.iter().flatten().any(is_idle)
    }

    fn learn_stretch(&self, now: Instant, promise: &Promise, given: Duration) {
        self.stretch.follow(now, promise.ratio(now, given), STRETCH_RATES, STRETCH_BOUNDS);
    }

    /// Checks that there is room for `candidate`, which may begin after `wait`.
    fn check_room(
        &mut self,
        now: Instant,
        wait: Duration,
        candidate: Candidate,
    ) -> Result<(), Refusal> {
        let Candidate { rank, need, is_free, .. } = candidate;
        let stretch = HEADROOM * self.stretch.get(now);
        let strict = Need {
            batch_extra: need.batch_extra.mul_f64(self.strictness.at(now)),
            alone: need.alone + (wait + need.alone).mul_f64(stretch - 1.0),
            ..need
        };
        if self.waiting.has_room(&self.free_at(now), rank, strict) {
            return Ok(());
        }
        // A request with less time than two batches take must not make other answers worse.
        if is_free && rank.deadline > now + 2 * (need.alone + need.batch_extra) {
            self.hurried = Some(now);
        }
        Err(Refusal::Late { backlog: self.backlog(now) })
    }

    /// Returns the time at which each thread is expected to be free.
    fn free_at(&self, now: Instant) -> Vec<Instant> {
        self.busy_until.iter().flatten().map(|until| now.max(*until)).collect()
    }

    /// Drops the items for which no one waits any more.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|item| !item.is_abandoned());
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
