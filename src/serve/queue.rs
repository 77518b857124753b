//! The way to the inference threads: requests by deadline, and families that come and go.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{Span, debug_span};

use super::{
    Observer, ServeError,
    batch::{self, Batch},
    planner::{Chosen, Planner, Terms},
    waiting::{Need, Rank, Share, Threads, Waiting},
    worker::Done,
};
use crate::{arch::ModelInput, family::ModuleId, runtime::Executor};

/// How long after a request was refused others are likely to be refused as well.
const LATELY: Duration = Duration::from_millis(100);

/// How much stricter admission gets when something admitted is late at its turn, and what is left
/// of that after any other batch.
const STRICTER: f64 = 0.25;
const LAXER: f64 = 0.99;

/// What is left of batches' allowances while requests that any plan could answer are refused: worse
/// answers are worth more than none.
const HURRY: f64 = 0.5;

/// A family as the threads know it; one that is loaded anew gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FamilyKey(pub(super) u64);

/// What an inference thread is asked to do beside answering.
#[derive(Debug)]
pub(super) enum Task {
    /// Take a family over.
    Install { family: FamilyKey, executor: Arc<Executor>, preload: Vec<ModuleId> },
    /// Let go of a family; comes up when none of its requests waits.
    Remove(FamilyKey),
}

/// What an inference thread is asked to run.
#[derive(Debug)]
pub(super) struct Job {
    /// The family that answers.
    pub(super) family: FamilyKey,
    /// Its texts or images, and the tokens of the longest text.
    pub(super) shape: (usize, usize),
    /// What the plan reads, until it does.
    pub(super) input: Option<ModelInput>,
    /// The plan, unless there is no time for it any more.
    pub(super) chosen: Chosen,
    /// What another plan may cost; `None` where nothing depends on time.
    pub(super) terms: Option<Terms>,
    /// Chooses other plans.
    pub(super) planner: Arc<Planner>,
    /// The span of its request.
    pub(super) request: Span,
    /// Its place in the queue, until it runs.
    pub(super) place: Option<Place>,
    /// What had passed since its arrival when it was queued.
    pub(super) before: Duration,
    /// When it was queued.
    pub(super) queued: Instant,
    /// When it is to be done; after its deadline its answer is worth nothing any more.
    pub(super) rank: Rank,
    /// The least that it can take.
    pub(super) need: Need,
    /// Where the answer goes; closed when nobody waits for it.
    pub(super) reply: oneshot::Sender<Result<Done, ServeError>>,
}

/// A job's place in the queue, which is left when this is dropped.
pub(super) struct Place {
    observer: Arc<dyn Observer>,
    family: String,
    _span: Span,
}

impl Place {
    /// Takes a place.
    pub(super) fn take(observer: Arc<dyn Observer>, family: &str) -> Self {
        observer.queue_changed(family, 1);
        Self { observer, family: family.to_owned(), _span: debug_span!("queue") }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.observer.queue_changed(&self.family, -1);
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Place").field("family", &self.family).finish_non_exhaustive()
    }
}

/// Why a job is not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueError {
    /// As many wait as may.
    Full {
        /// How many that is.
        limit: usize,
        /// When they may be done.
        backlog: Duration,
    },
    /// It would be late, or make another late.
    Late {
        /// When everything that waits may be done.
        backlog: Duration,
    },
    /// The threads are gone.
    Closed,
}

/// The senders' end; when the last clone is dropped, the threads end.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

/// A thread's end.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    /// Which of the threads it is.
    index: usize,
}

/// What a thread does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Jobs that run together.
    Batch(Batch),
    /// A task.
    Task(Task),
    /// Nothing is asked for.
    Nothing,
    /// Nobody will ask again.
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
    /// When the batch that each thread runs is expected to be done; `None` for one that is gone.
    busy_until: Vec<Option<Instant>>,
    /// Threads that wait for something to do.
    num_idle: usize,
    /// When a request was last refused because it would be late.
    refused: Option<Instant>,
    /// When one was that could have taken any plan, and had time for more than one batch.
    hurried: Option<Instant>,
    /// How much of the time of a full batch must be left behind others, from 0 to 1.
    strictness: f64,
    is_closed: bool,
}

/// Closes the queue when it is dropped.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|state| state.is_closed = true);
    }
}

/// The thread has ended, also if it panicked. When none is left, what waits is told by its closed
/// replies.
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

/// Makes a queue in which at most `limit` jobs wait for so many threads.
pub(super) fn queue(limit: usize, num_workers: usize) -> (Queue, Vec<Receiver>) {
    let state = State {
        waiting: Waiting::new(),
        tasks: VecDeque::new(),
        busy_until: vec![Some(Instant::now()); num_workers],
        num_idle: 0,
        refused: None,
        hurried: None,
        strictness: 0.0,
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
    /// Queues a job.
    ///
    /// # Errors
    ///
    /// Fails when as many jobs wait as may, when a job whose budget counts would be late even if
    /// everything before it takes the least it can, and when the threads are gone.
    pub(super) fn push(&self, job: Job) -> Result<(), QueueError> {
        let Shared { limit, .. } = *self.shared;
        self.shared.change(|state| {
            let now = Instant::now();
            if state.is_closed {
                return Err(QueueError::Closed);
            }
            state.drop_abandoned();
            if state.waiting.len() >= limit {
                return Err(QueueError::Full { limit, backlog: state.backlog(now) });
            }
            if let Some(terms) = &job.terms {
                state.check_room(now, (job.rank, job.need), terms.budget.plan.is_none())?;
            }
            state.waiting.push(job.rank, job.need.least, job);
            Ok(())
        })
    }

    /// Checks, before all is known of a request, that it is worth a try; it is where none was
    /// refused lately.
    ///
    /// # Errors
    ///
    /// Fails when it would be late.
    pub(super) fn check_early(
        &self,
        need: impl FnOnce() -> Option<(Rank, Need)>,
        is_free: bool,
    ) -> Result<(), QueueError> {
        let now = Instant::now();
        let refused = self.shared.lock().refused;
        if refused.is_none_or(|refused| now - refused > LATELY) {
            return Ok(());
        }
        let check = |need| self.shared.lock().check_room(now, need, is_free);
        need().map_or(Ok(()), check)
    }

    /// Returns when everything that waits may be done.
    pub(super) fn backlog(&self) -> Duration {
        self.shared.lock().backlog(Instant::now())
    }

    /// Tells whether something runs or waits.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        let now = Instant::now();
        state.waiting.len() > 0 || state.busy_until.iter().flatten().any(|until| *until > now)
    }

    /// Hands a family's executor over; `preload` is loaded while no job waits.
    pub(super) fn install(
        &self,
        family: FamilyKey,
        executor: Arc<Executor>,
        preload: Vec<ModuleId>,
    ) {
        self.task(Task::Install { family, executor, preload });
    }

    /// Lets go of a family once the jobs queued before are done.
    pub(super) fn remove(&self, family: FamilyKey) {
        self.task(Task::Remove(family));
    }

    fn task(&self, task: Task) {
        self.shared.change(|state| state.tasks.push_back(task));
    }
}

impl Receiver {
    /// Takes what is to be done next; waits for something where `may_wait`.
    pub(super) fn next(&self, may_wait: bool) -> Next {
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

    /// Tells how long the batch that begins now is expected to run.
    pub(super) fn begin(&self, expected: Duration) {
        self.shared.lock().busy_until[self.index] = Some(Instant::now() + expected);
    }

    /// Tells that the batch that ran is done.
    pub(super) fn end(&self) {
        self.shared.lock().busy_until[self.index] = Some(Instant::now());
    }
}

impl State {
    fn next_batch(&mut self) -> Option<Batch> {
        self.drop_abandoned();
        let now = Instant::now();
        let is_hurried = self.hurried.is_some_and(|since| now - since < LATELY);
        let choose = |members: &[&Job], shares: &[Share]| {
            let mut shares = shares.to_vec();
            if is_hurried {
                shares
                    .iter_mut()
                    .for_each(|share| share.allowance = share.allowance.mul_f64(HURRY));
            }
            batch::guarded(|| batch::choose(members, &shares, now))
        };
        let num_all = self.busy_until.iter().flatten().count();
        let threads = Threads { num_all, num_free: self.num_idle + 1 };
        let (jobs, mut chosen) = self.waiting.pop_batch((now, threads), batch::joins, choose)?;
        match &mut chosen {
            Err(ServeError::Late { retry_after }) => {
                self.refused = Some(now);
                self.strictness = (self.strictness + STRICTER).min(1.0);
                *retry_after = self.backlog(now);
            }
            _ => self.strictness *= LAXER,
        }
        Some(Batch { jobs, chosen })
    }

    /// Checks that there is room for a request, which any plan may answer where it `is_free`.
    fn check_room(
        &mut self,
        now: Instant,
        (rank, need): (Rank, Need),
        is_free: bool,
    ) -> Result<(), QueueError> {
        let strict = Need { company: need.company.mul_f64(self.strictness), ..need };
        if self.waiting.has_room(&self.free_at(now), rank, strict) {
            return Ok(());
        }
        self.refused = Some(now);
        // One in a greater hurry than a batch or two takes does not make the others' answers worse.
        if is_free && rank.deadline > now + 2 * (need.alone + need.company) {
            self.hurried = Some(now);
        }
        Err(QueueError::Late { backlog: self.backlog(now) })
    }

    /// Returns when everything that waits may be done.
    fn backlog(&self, now: Instant) -> Duration {
        let done = self.waiting.done_at(&self.free_at(now));
        done.map_or(Duration::ZERO, |done| done.saturating_duration_since(now))
    }

    /// Returns when each thread is expected to be free.
    fn free_at(&self, now: Instant) -> Vec<Instant> {
        self.busy_until.iter().flatten().map(|until| now.max(*until)).collect()
    }

    /// Drops the jobs for which nobody waits any more.
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
