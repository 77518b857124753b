//! Queue to the inference threads: requests by deadline, and families to install or remove.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    batch::{self, Batch},
    job::{FamilyKey, Job, Task},
    scheduler::{Begun, Candidate, Capacity, Promise, Refusal, Scheduler, StepPlan},
    waiting::{Expected, Reserved},
};
use crate::{
    family::ModuleId,
    runtime::Executor,
    serve::{error::ServeError, generation::Generator, workers::idle::Idle},
};

/// Reason why a request is not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueError {
    /// The scheduler does not admit the request.
    Refused(Refusal),
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

/// Time for which a thread waits for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It does not wait.
    None,
    /// It waits until no request came for a while, and then takes the whole time for other work.
    Busy,
    /// It waits until no request came for a while, and then takes little time for other work.
    Quiet,
    /// It waits until there is work.
    Endless,
}

/// Time without a request after which threads load modules ahead or measure.
const QUIET: Duration = Duration::from_millis(100);
/// Time between two modules, and between two measurements.
const BREATH: Duration = Duration::from_millis(1);
const PACE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    scheduler: Scheduler<Job>,
    tasks: VecDeque<Task>,
    /// Families for whose jobs a plan is being chosen.
    choosing: Vec<FamilyKey>,
    /// Number of threads that wait for work.
    num_idle: usize,
    is_closed: bool,
}

/// Next work of a thread, before a plan is chosen.
enum Found {
    Step(StepPlan<Job>),
    Next(Next),
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
            let now = Instant::now();
            self.shared.change(|state| state.scheduler.give_up(now, reserved, &self.promise));
        }
    }
}

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
            if state.scheduler.end_thread(self.index) {
                state.is_closed = true;
                state.tasks.clear();
            }
        });
    }
}

/// Creates a queue for `num_workers` threads, in which at most `limit` jobs wait.
pub(crate) fn queue(limit: usize, num_workers: usize) -> (Queue, Vec<Receiver>) {
    let state = State {
        scheduler: Scheduler::new(Instant::now(), limit, num_workers),
        tasks: VecDeque::new(),
        choosing: Vec::new(),
        num_idle: 0,
        is_closed: false,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    let open = Arc::new(Open(shared.clone()));
    let receiver = |index| Receiver { shared: shared.clone(), index };
    let receivers = (0..num_workers).map(receiver).collect();
    (Queue { shared, _open: open }, receivers)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, or as long as `patience` says. Returns whether it was quiet for a while.
    fn rest<'s>(
        &'s self,
        state: MutexGuard<'s, State>,
        patience: Patience,
    ) -> (MutexGuard<'s, State>, bool) {
        let pace = match patience {
            Patience::Busy => BREATH,
            Patience::Quiet => PACE,
            Patience::None | Patience::Endless => {
                return (self.changed.wait(state).unwrap_or_else(PoisonError::into_inner), false);
            }
        };
        let waited = self.changed.wait_timeout(state, pace);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let quiet = now.checked_sub(QUIET).unwrap_or(now);
        let is_rested = waited.timed_out() && state.scheduler.was_quiet_since(quiet);
        (state, is_rested)
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
    /// Fails when the scheduler refuses the request, and when the threads are gone.
    pub(crate) fn admit(&self, candidate: Candidate) -> Result<Reservation, QueueError> {
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(QueueError::Closed);
        }
        let admitted = state.scheduler.admit(Instant::now(), candidate);
        let (reserved, promise) = admitted.map_err(QueueError::Refused)?;
        drop(state);
        Ok(Reservation { shared: self.shared.clone(), reserved: Some(reserved), promise })
    }

    /// Queues `job` in the place reserved for it.
    ///
    /// # Errors
    ///
    /// Fails when the threads are gone.
    pub(crate) fn push(&self, mut place: Reservation, job: Job) -> Result<(), QueueError> {
        self.shared.change(|state| {
            let reserved = place.reserved.take().filter(|_| !state.is_closed);
            let reserved = reserved.ok_or(QueueError::Closed)?;
            state.scheduler.push(Instant::now(), reserved, job);
            Ok(())
        })
    }

    /// Returns the time until everything that waits may be done.
    pub(crate) fn backlog(&self) -> Duration {
        self.shared.lock().scheduler.backlog(Instant::now())
    }

    /// Returns whether a request other than that of `place` waits, or a batch runs.
    pub(crate) fn is_busy_beside(&self, place: &Reservation) -> bool {
        let state = self.shared.lock();
        let own = usize::from(place.reserved.is_some());
        state.scheduler.len() > own || state.scheduler.num_running() > 0
    }

    /// Returns whether no request ran, waited or arrived since `begun`.
    pub(crate) fn was_quiet_since(&self, begun: Instant) -> bool {
        self.shared.lock().scheduler.was_quiet_since(begun)
    }

    /// Hands over a family's executor.
    pub(crate) fn install(&self, family: FamilyKey, executor: Arc<Executor>) {
        self.task(Task::Install { family, executor });
    }

    /// Hands over work for an installed family. When no request came for a while, the modules of
    /// `preload` are loaded, and then `idle` is worked on.
    pub(crate) fn work_ahead(&self, family: FamilyKey, preload: Vec<ModuleId>, idle: Option<Idle>) {
        self.task(Task::Ahead { family, preload, idle });
    }

    /// Has a thread run the steps of a family's generator, which has sequences.
    pub(crate) fn generate(&self, family: FamilyKey, generator: Arc<Generator>) {
        self.task(Task::Generate(family, generator));
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
    /// Returns the thread's next work; waits for it as `patience` says. The plan of a batch is
    /// chosen while the queue is free for others.
    pub(crate) fn next(&self, patience: Patience) -> Next {
        let plan = match self.find(patience) {
            Found::Step(plan) => plan,
            Found::Next(next) => return next,
        };
        let (size, mut chosen) = batch::guarded(|| batch::choose(&plan));
        let (now, family, num_taken) = (plan.now, plan.family(), plan.taken.items.len());
        let mut state = self.shared.lock();
        let is_late = matches!(chosen, Err(ServeError::Late { .. }));
        let jobs = state.scheduler.commit(plan, size, is_late);
        if let Some(index) = state.choosing.iter().position(|known| Some(*known) == family) {
            state.choosing.swap_remove(index);
        }
        if let Err(ServeError::Late { retry_after }) = &mut chosen {
            *retry_after = state.scheduler.backlog(now);
        }
        drop(state);
        if jobs.len() < num_taken {
            self.shared.changed.notify_all();
        }
        Next::Batch(Batch { jobs, chosen })
    }

    /// Returns the next work, or the jobs among which a plan must choose.
    fn find(&self, patience: Patience) -> Found {
        let (mut state, mut is_rested) = (self.shared.lock(), false);
        loop {
            if let Some(task) = state.next_task() {
                return Found::Next(Next::Task(task));
            }
            let capacity = Capacity { num_free: state.num_idle + 1 };
            if let Some(plan) = state.scheduler.step(Instant::now(), &capacity) {
                state.choosing.extend(plan.family());
                return Found::Step(plan);
            }
            if state.is_closed {
                return Found::Next(Next::Closed);
            }
            match patience {
                Patience::None => return Found::Next(Next::Nothing),
                Patience::Busy | Patience::Quiet if is_rested => {
                    return Found::Next(Next::Nothing);
                }
                Patience::Busy | Patience::Quiet | Patience::Endless => {}
            }
            state.num_idle += 1;
            (state, is_rested) = self.shared.rest(state, patience);
            state.num_idle -= 1;
        }
    }

    /// Returns whether no request ran, waited or arrived since `begun`.
    pub(crate) fn was_quiet_since(&self, begun: Instant) -> bool {
        self.shared.lock().scheduler.was_quiet_since(begun)
    }

    /// Records the start of a batch that is expected to run for `expected`.
    pub(crate) fn begin(&self, expected: Expected) -> Begun {
        self.shared.lock().scheduler.begin(Instant::now(), self.index, expected)
    }

    /// Records the end of a batch of `jobs`. Returns whether no other request ran, waited or
    /// arrived meanwhile.
    pub(crate) fn end(&self, begun: Begun, jobs: &[Job]) -> bool {
        self.shared.lock().scheduler.end(Instant::now(), self.index, begun, jobs)
    }
}

impl StepPlan<Job> {
    /// Returns the family of the jobs.
    fn family(&self) -> Option<FamilyKey> {
        self.taken.items.first().map(|job| job.family)
    }
}

impl State {
    fn next_task(&mut self) -> Option<Task> {
        let is_due = |task: &Task| match task {
            Task::Install { .. } | Task::Ahead { .. } | Task::Generate(..) => true,
            Task::Remove(family) => {
                let waits = self.scheduler.items().any(|job| job.family == *family);
                !waits && !self.choosing.contains(family)
            }
        };
        let index = self.tasks.iter().position(is_due)?;
        self.tasks.remove(index)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
