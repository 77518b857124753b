//! What a connection is doing, so that one that does nothing can be closed.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// What a connection is doing.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests whose answers are not written yet.
    num_running: usize,
    /// When the connection was opened, or its last request began or ended.
    since: Instant,
    has_asked: bool,
}

/// How long a connection may do nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Before the head of its first request is there.
    pub(super) first: Duration,
    /// After that.
    pub(super) idle: Duration,
}

/// A request that runs; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<Activity>);

/// The body of an answer, with which its request ends.
#[derive(Debug)]
pub(super) struct RunningBody {
    body: Body,
    _running: Running,
}

impl Activity {
    /// A connection that was just opened.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { num_running: 0, since: Instant::now(), has_asked: false }))
    }

    /// Begins a request.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        let mut state = self.state();
        state.num_running += 1;
        state.since = Instant::now();
        state.has_asked = true;
        drop(state);
        Running(self.clone())
    }

    /// Waits until the connection has done nothing for too long.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub(super) async fn is_overdue(&self, patience: Patience) {
        loop {
            let State { num_running, since, has_asked } = *self.state();
            let wait = if has_asked { patience.idle } else { patience.first };
            let now = Instant::now();
            let due = if num_running > 0 { now + wait } else { since + wait };
            if due <= now {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Lets the request end with its body.
    pub(super) fn with(self, body: Body) -> RunningBody {
        RunningBody { body, _running: self }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.num_running -= 1;
        state.since = Instant::now();
    }
}

impl HttpBody for RunningBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { first: Duration::from_secs(2), idle: Duration::from_secs(60) };

    async fn seconds_until_overdue(activity: &Activity) -> u64 {
        let start = Instant::now();
        activity.is_overdue(PATIENCE).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asks_goes_first() {
        assert_eq!(seconds_until_overdue(&Activity::new()).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_is_waited_for() {
        let activity = Arc::new(Activity::new());
        let running = activity.begin();
        let ended = async {
            tokio::time::sleep(Duration::from_secs(90)).await;
            drop(running.with(Body::empty()));
        };
        let (seconds, ()) = tokio::join!(seconds_until_overdue(&activity), ended);
        assert_eq!(seconds, 90 + 60);
    }
}
