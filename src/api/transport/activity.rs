//! Activity of a connection. A connection can be closed if it is idle, or if its client takes
//! nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Number of bytes of an answer that a client must take to be waited for again, unless fewer are
/// left. A client that takes a byte now and then holds no connection.
const TAKEN_BYTES: usize = 16 << 10;

/// Time that stands for never, if a time-out is longer than clocks reach.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Activity of a connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Number of requests whose answers are not written yet.
    num_running: usize,
    /// Time when the connection was opened, or when its last request began or ended.
    since: Instant,
    has_asked: bool,
    /// Times since which parts of answers have been waiting for the client, by the part's number.
    waiting: BTreeMap<u64, Instant>,
    /// Number of the next part.
    next_part: u64,
}

/// Time-outs of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Time until the head of the first request must be there.
    pub(super) first: Duration,
    /// Time that the connection may be idle after its first request.
    pub(super) idle: Duration,
    /// Time that an answer may wait for the client to take it.
    pub(super) unread: Duration,
}

/// Reason to close a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The connection has no request.
    Idle,
    /// The client does not take its answers.
    Unread,
}

/// A running request; it ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Running {
    request: Arc<Request>,
}

#[derive(Debug)]
struct Request(Arc<Activity>);

/// Part of an answer that waits for the client; it counts as taken when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    running: Running,
    part: u64,
    num_taken: usize,
}

impl Activity {
    /// Creates the activity of a connection that was just opened.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            num_running: 0,
            since: Instant::now(),
            has_asked: false,
            waiting: BTreeMap::new(),
            next_part: 0,
        }))
    }

    /// Begins a request.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        let mut state = self.state();
        state.num_running += 1;
        state.since = Instant::now();
        state.has_asked = true;
        drop(state);
        Running { request: Arc::new(Request(self.clone())) }
    }

    /// Waits until the connection has been idle, or its answers unread, for too long.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn overdue(&self, patience: Patience) -> Overdue {
        loop {
            let now = Instant::now();
            let (idle_at, unread_at) = self.state().due(now, &patience);
            if unread_at.is_some_and(|due| due <= now) {
                return Overdue::Unread;
            }
            if idle_at <= now {
                return Overdue::Idle;
            }
            // An answer that begins to wait from now on is not overdue before that time.
            let unread_at = unread_at.unwrap_or_else(|| after(now, patience.unread));
            tokio::time::sleep_until(idle_at.min(unread_at)).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the earliest time at which the connection is idle for too long. Also returns the
    /// time at which the first waiting answer is unread for too long, or None if no answer waits.
    fn due(&self, now: Instant, patience: &Patience) -> (Instant, Option<Instant>) {
        let wait = if self.has_asked { patience.idle } else { patience.first };
        let idle_since = if self.num_running > 0 { now } else { self.since };
        let unread_since = self.waiting.values().min();
        (after(idle_since, wait), unread_since.map(|since| after(*since, patience.unread)))
    }
}

fn after(start: Instant, wait: Duration) -> Instant {
    start.checked_add(wait).unwrap_or(start + NEVER)
}

impl Running {
    /// Notes that a part of the answer waits for the client from now on.
    pub(super) fn wait(&self) -> Waiting {
        let mut state = self.request.0.state();
        let part = state.next_part;
        state.next_part += 1;
        state.waiting.insert(part, Instant::now());
        drop(state);
        Waiting { running: self.clone(), part, num_taken: 0 }
    }
}

impl Waiting {
    /// Notes that the client has taken `num_bytes` bytes of the part.
    pub(super) fn take(&mut self, num_bytes: usize) {
        self.num_taken = self.num_taken.saturating_add(num_bytes);
        if self.num_taken >= TAKEN_BYTES {
            self.num_taken = 0;
            self.running.request.0.state().waiting.insert(self.part, Instant::now());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.running.request.0.state().waiting.remove(&self.part);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.num_running -= 1;
        state.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        first: Duration::from_secs(2),
        idle: Duration::from_secs(60),
        unread: Duration::from_secs(30),
    };

    async fn overdue(activity: &Activity) -> (u64, Overdue) {
        let start = Instant::now();
        let overdue = activity.overdue(PATIENCE).await;
        (start.elapsed().as_secs(), overdue)
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asks_goes_first() {
        assert_eq!(overdue(&Activity::new()).await, (2, Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_is_waited_for() {
        let activity = Arc::new(Activity::new());
        let running = activity.begin();
        let ended = async {
            tokio::time::sleep(Duration::from_secs(90)).await;
            drop(running);
        };
        let (overdue, ()) = tokio::join!(overdue(&activity), ended);
        assert_eq!(overdue, (90 + 60, Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_not_waited_for() {
        let activity = Arc::new(Activity::new());
        let running = activity.begin();
        let answered = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            running.wait()
        };
        let (overdue, _waiting) = tokio::join!(overdue(&activity), answered);
        assert_eq!(overdue, (7 + 30, Overdue::Unread));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_byte_now_and_then_takes_nothing() {
        for (num_bytes, expected) in [(1, 30), (TAKEN_BYTES, 10 * 9 + 30)] {
            let activity = Arc::new(Activity::new());
            let mut waiting = activity.begin().wait();
            let taken = async {
                for _ in 0..9 {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    waiting.take(num_bytes);
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                overdue = overdue(&activity) => assert_eq!(overdue, (expected, Overdue::Unread)),
                () = taken => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_runs_until_its_answer_is_taken() {
        let activity = Arc::new(Activity::new());
        let waiting = activity.begin().wait();
        let taken = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            drop(waiting);
        };
        let (overdue, ()) = tokio::join!(overdue(&activity), taken);
        assert_eq!(overdue, (20 + 60, Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_out_that_no_clock_reaches_is_none() {
        let most = Duration::from_secs(u64::MAX);
        let patience = Patience { first: most, idle: most, unread: most };
        let activity = Activity::new();
        let day = Duration::from_secs(24 * 3600);
        assert!(tokio::time::timeout(day, activity.overdue(patience)).await.is_err());
    }
}
