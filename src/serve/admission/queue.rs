//! Queue to the inference threads: requests by deadline, and families to install or remove.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    batch::{self, Batch, Turn},
    job::{FamilyKey, Job, Promise, Task},
    strictness::Strictness,
    waiting::{Need, Rank, Reserved, Share, Threads, Waiting},
};
use crate::{
    family::ModuleId,
    runtime::Executor,
    serve::{
        error::ServeError,
        planner::follow::{Bounds, Rates, Transient},
    },
};

/// Time for which overlapping requests may be the reason that later ones are late or refused.
const LATELY: Duration = Duration::from_millis(100);

/// Rates and bounds of the ratio between the time until a job is done and the expected time. It
/// settles at about the 90th percentile.
const STRETCH_RATES: Rates = Rates { rise: 0.09, fall: 0.01 };
const STRETCH_BOUNDS: Bounds = Bounds { least: 1.0, most: 16.0 };

/// Factor of room kept for delays between a job's admission and its turn. A job that ends at the
/// last moment is late as often as not.
const HEADROOM: f64 = 1.4;

/// Fraction of a batch's allowance that remains while requests that any plan could answer are
/// refused. A worse answer is worth more than a refusal.
const HURRY: f64 = 0.5;

/// Reason why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueError {
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
    /// The threads are gone.
    Closed,
}

/// Sending end of the queue. When the last clone is dropped, the threads end.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

/// Receiving end of the queue, for one thread.
#[derive(Debug)]
pub(crate) struct Receiver {
    shared: Arc<Shared>,
    /// Index of the thread.
    index: usize,
}

/// Next work of a thread.
#[derive(Debug)]
pub(crate) enum Next {
    /// Jobs that run together.
    Batch(Batch),
    /// Family to install or remove.
    Task(Task),
    /// The queue has no work now.
    Nothing,
    /// The queue is closed; no work will come.
    Closed,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Debug)]
struct State {
    waiting: Waiting<Job>,
    tasks: VecDeque<Task>,
    /// Time at which each thread's batch is expected to be done; `None` for a thread that has
    /// ended.
    busy_until: Vec<Option<Instant>>,
    /// Number of threads that wait for work.
    num_idle: usize,
    /// Time of the last refusal of a request that any plan could have answered. The request must
    /// have had time for more than one batch.
    hurried: Option<Instant>,
    strictness: Strictness,
    /// Ratio between the time until a job is done and the expected time. Preparing, answering and
    /// other families take the processor as well.
    stretch: Transient,
    /// Number of running batches.
    num_running: usize,
    /// Time at which a request last arrived or was refused, or a batch ran beside other work.
    disturbed: Option<Instant>,
    /// Time at which a request last arrived beside another.
    crowded: Option<Instant>,
    is_closed: bool,
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

/// Place in the queue of an admitted request that is being prepared. Dropping it gives the place
/// up.
#[derive(Debug)]
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    reserved: Option<Reserved>,
    pub(crate) promise: Promise,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            self.shared.change(|state| {
                state.waiting.release(reserved);
                // The request was given up, so the time until then is a lesson only if it is too
                // long.
                let now = Instant::now();
                if self.promise.ratio(now) > state.stretch.get(now) {
                    state.learn_stretch(now, &self.promise);
                }
            });
        }
    }
}

/// Start of a batch, which the thread hands back at the batch's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun(Instant);

/// Guard that closes the queue when it is dropped.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|state| state.is_closed = true);
    }
}

/// Marks the thread as ended, even after a panic. The last thread closes the queue and drops what
/// waits. Closed replies then tell the waiting clients.
impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.busy_until[self.index] = None;
            if state.busy_until.iter().all(Option::is_none) {
                state.is_closed = true;
                state.waiting = Waiting::new();
                state.tasks.clear();
            }
        });
    }
}

/// Creates a queue for `num_workers` threads, in which at most `limit` jobs wait.
pub(crate) fn queue(limit: usize, num_workers: usize) -> (Queue, Vec<Receiver>) {
    let state = State {
        waiting: Waiting::new(),
        tasks: VecDeque::new(),
        busy_until: vec![Some(Instant::now()); num_workers],
        num_idle: 0,
        hurried: None,
        strictness: Strictness::default(),
        stretch: Transient::new(1.0),
        num_running: 0,
        disturbed: None,
        crowded: None,
        is_closed: false,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), limit });
    let open = Arc::new(Open(shared.clone()));
    let receiver = |index| Receiver { shared: shared.clone(), index };
    let receivers = (0..num_workers).map(receiver).collect();
    (Queue { shared, _open: open }, receivers)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_all();
        changed
    }
}

impl Queue {
    /// Admits a request before any work is done for it, and reserves its place in the queue.
    ///
    /// # Errors
    ///
    /// Fails when the queue is full, and when the threads are gone. Fails when a request with a
    /// budget would be late even if everything before it takes the least time. If nothing waits and
    /// a thread is idle, no request is too late: its plan decides.
    pub(crate) fn admit(&self, candidate: Candidate) -> Result<Reservation, QueueError> {
        let Shared { limit, .. } = *self.shared;
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.disturbed = Some(now);
        if state.is_closed {
            return Err(QueueError::Closed);
        }
        state.drop_abandoned();
        if state.waiting.len() > 0 || state.num_running > 0 {
            state.crowded = Some(now);
        }
        let is_alone = state.crowded.is_none_or(|crowded| now - crowded >= LATELY);
        if state.waiting.len() >= limit {
            return Err(QueueError::Full { limit, backlog: state.backlog(now) });
        }
        let start = state.waiting.start_of(&state.free_at(now), candidate.rank).unwrap_or(now);
        let wait = start.saturating_duration_since(now);
        if candidate.has_budget && state.is_busy(now) {
            state.check_room(now, wait, candidate)?;
        }
        let reserved = Some(state.waiting.reserve(candidate.rank, candidate.need.least));
        drop(state);
        let promise = Promise { admitted: now, least: wait + candidate.need.alone, is_alone };
        Ok(Reservation { shared: self.shared.clone(), reserved, promise })
    }

    /// Queues `job` in the place reserved for it.
    ///
    /// # Errors
    ///
    /// Fails when the threads are gone.
    pub(crate) fn push(&self, mut place: Reservation, job: Job) -> Result<(), QueueError> {
        self.shared.change(|state| {
            state.disturbed = Some(Instant::now());
            if state.is_closed {
                return Err(QueueError::Closed);
            }
            if let Some(reserved) = place.reserved.take() {
                state.waiting.release(reserved);
            }
            state.waiting.push(job.rank, job.least, job);
            Ok(())
        })
    }

    /// Returns the time until everything that waits may be done.
    pub(crate) fn backlog(&self) -> Duration {
        self.shared.lock().backlog(Instant::now())
    }

    /// Returns whether a request other than that of `place` waits, or a batch runs.
    pub(crate) fn is_busy_beside(&self, place: &Reservation) -> bool {
        let state = self.shared.lock();
        let own = usize::from(place.reserved.is_some());
        state.waiting.len() > own || state.num_running > 0
    }

    /// Returns whether no request ran, waited or arrived since `begun`.
    pub(crate) fn was_quiet_since(&self, begun: Instant) -> bool {
        let state = self.shared.lock();
        state.num_running == 0 && state.is_undisturbed_since(begun)
    }

    /// Hands over a family's executor. The modules of `preload` are loaded while no job waits.
    pub(crate) fn install(
        &self,
        family: FamilyKey,
        executor: Arc<Executor>,
        preload: Vec<ModuleId>,
    ) {
        self.task(Task::Install { family, executor, preload });
    }

    /// Removes a family once the jobs queued before are done.
    pub(crate) fn remove(&self, family: FamilyKey) {
        self.task(Task::Remove(family));
    }

    fn task(&self, task: Task) {
        self.shared.change(|state| state.tasks.push_back(task));
    }
}

impl Receiver {
    /// Returns the thread's next work; waits for it if `may_wait`.
    pub(crate) fn next(&self, may_wait: bool) -> Next {
        let mut state = self.shared.lock();
        loop {
            if let Some(task) = state.next_task() {
                return Next::Task(task);
            }
            if let Some(batch) = state.next_batch() {
                return Next::Batch(batch);
            }
            if state.is_closed {
                return Next::Closed;
            }
            if !may_wait {
                return Next::Nothing;
            }
            state.num_idle += 1;
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.num_idle -= 1;
        }
    }

    /// Records the start of a batch that is expected to run for `expected`.
    pub(crate) fn begin(&self, expected: Duration) -> Begun {
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.busy_until[self.index] = Some(now + expected);
        state.num_running += 1;
        if state.num_running > 1 || state.waiting.len() > 0 {
            state.disturbed = Some(now);
        }
        Begun(now)
    }

    /// Records the end of a batch of `jobs`. Returns whether no other request ran, waited or
    /// arrived meanwhile.
    pub(crate) fn end(&self, Begun(begun): Begun, jobs: &[Job]) -> bool {
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.busy_until[self.index] = Some(now);
        state.num_running -= 1;
        for job in jobs.iter().filter(|job| job.budget.is_some()) {
            state.learn_stretch(now, &job.promise);
        }
        state.is_undisturbed_since(begun)
    }
}

impl State {
    fn next_batch(&mut self) -> Option<Batch> {
        self.drop_abandoned();
        let now = Instant::now();
        let is_hurried = self.hurried.is_some_and(|since| now - since < LATELY);
        let is_only = self.waiting.len() == 1 && self.num_running == 0;
        let choose = |members: &[&Job], shares: &[Share]| {
            let mut shares = shares.to_vec();
            if is_hurried {
                shares
                    .iter_mut()
                    .for_each(|share| share.allowance = share.allowance.mul_f64(HURRY));
            }
            batch::guarded(|| batch::choose(members, &Turn { shares: &shares, now, is_only }))
        };
        let num_all = self.busy_until.iter().flatten().count();
        let threads = Threads { num_all, num_free: self.num_idle + 1 };
        let (jobs, mut chosen) = self.waiting.pop_batch(now, threads, batch::joins, choose)?;
        match &mut chosen {
            Err(ServeError::Late { retry_after }) => {
                self.strictness.raise(now);
                jobs.iter().for_each(|job| self.learn_stretch(now, &job.promise));
                *retry_after = self.backlog(now);
            }
            _ => self.strictness.lower(),
        }
        Some(Batch { jobs, chosen })
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

    fn learn_stretch(&self, now: Instant, promise: &Promise) {
        self.stretch.follow(now, promise.ratio(now), STRETCH_RATES, STRETCH_BOUNDS);
    }

    /// Checks that there is room for `candidate`, which may begin after `wait`.
    fn check_room(
        &mut self,
        now: Instant,
        wait: Duration,
        candidate: Candidate,
    ) -> Result<(), QueueError> {
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
        Err(QueueError::Late { backlog: self.backlog(now) })
    }

    /// Returns the time until everything that waits may be done.
    fn backlog(&self, now: Instant) -> Duration {
        let done = self.waiting.done_at(&self.free_at(now));
        done.map_or(Duration::ZERO, |done| done.saturating_duration_since(now))
    }

    /// Returns the time at which each thread is expected to be free.
    fn free_at(&self, now: Instant) -> Vec<Instant> {
        self.busy_until.iter().flatten().map(|until| now.max(*until)).collect()
    }

    /// Drops the jobs whose clients no longer wait.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|job| !job.reply.is_closed());
    }

    fn next_task(&mut self) -> Option<Task> {
        let is_due = |task: &Task| match task {
            Task::Install { .. } => true,
            Task::Remove(family) => !self.waiting.items().any(|job| job.family == *family),
        };
        let index = self.tasks.iter().position(is_due)?;
        self.tasks.remove(index)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
