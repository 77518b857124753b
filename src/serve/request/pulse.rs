//! Estimate of the time that an arriving request waits until an async thread reads it.
//!
//! A request does not tell when it came to the socket. While requests come, the process therefore
//! sends a byte through a socket of its own every few milliseconds. The byte waits for the async
//! threads as requests do.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::io::AsyncReadExt;

use crate::serve::planner::follow::{Bounds, Rates, Transient};

/// Least time between two bytes.
const INTERVAL: Duration = Duration::from_millis(5);

/// Time in seconds that a byte waits without load. Its rates settle at about the 90th percentile of
/// bytes.
const LAG: f64 = 5e-5;
const BOUNDS: Bounds = Bounds { least: 1e-6, most: 0.1 };
const RATES: Rates = Rates { rise: 0.18, fall: 0.02 };

/// Estimate of the time that arriving bytes wait. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lag: Transient,
    /// Sending end of the socket, created in the async runtime at the first beat.
    sender: OnceLock<Option<UnixStream>>,
    beat: Mutex<Beat>,
}

#[derive(Debug, Default)]
struct Beat {
    last: Option<Instant>,
    /// Time at which the byte was sent that is still unread; `None` if there is no such byte.
    under_way: Option<Instant>,
}

impl Default for Pulse {
    fn default() -> Self {
        let (lag, sender, beat) = (Transient::new(LAG), OnceLock::new(), Mutex::default());
        Self { shared: Arc::new(Shared { lag, sender, beat }) }
    }
}

impl Pulse {
    /// Returns the 90th percentile of the time that requests which arrive at `now` wait.
    pub(crate) fn lag(&self, now: Instant) -> Duration {
        Duration::from_secs_f64(self.shared.lag.get(now))
    }

    /// Sends a byte if the last one was sent long enough ago and has been read. Must be called by
    /// an async thread.
    pub(crate) fn beat(&self, now: Instant) {
        let mut beat = self.shared.lock();
        let is_due = beat.last.is_none_or(|last| now.saturating_duration_since(last) >= INTERVAL);
        if !is_due || beat.under_way.is_some() {
            return;
        }
        let Some(mut sender) = self.shared.sender.get_or_init(|| self.listen()).as_ref() else {
            return;
        };
        beat.last = Some(now);
        beat.under_way = sender.write(&[0]).is_ok().then_some(now);
    }

    /// Starts to read the socket. Returns its sending end, or `None` if there is no async runtime
    /// here.
    fn listen(&self) -> Option<UnixStream> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let (sender, receiver) = UnixStream::pair().ok()?;
        sender.set_nonblocking(true).ok()?;
        receiver.set_nonblocking(true).ok()?;
        let mut receiver = tokio::net::UnixStream::from_std(receiver).ok()?;
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let mut byte = [0];
            while receiver.read_exact(&mut byte).await.is_ok() {
                shared.learn(Instant::now());
            }
        });
        Some(sender)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from the byte that was read at `now`.
    fn learn(&self, now: Instant) {
        if let Some(sent) = self.lock().under_way.take() {
            let waited = now.saturating_duration_since(sent).as_secs_f64();
            self.lag.follow(now, waited.max(BOUNDS.least), RATES, BOUNDS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::planner::follow::FORGOTTEN;

    #[test]
    fn a_byte_that_waited_long_is_learned_and_forgotten() {
        let (pulse, now) = (Pulse::default(), Instant::now());
        let waited = Duration::from_millis(20);
        for _ in 0..200 {
            pulse.shared.lock().under_way = Some(now);
            pulse.shared.learn(now + waited);
        }
        let lag = pulse.lag(now + waited).as_secs_f64();
        assert!((lag - 0.02).abs() < 1e-3, "{lag}");
        let rested = now + waited + FORGOTTEN;
        assert_eq!(pulse.lag(rested), Duration::from_secs_f64(LAG));
    }

    #[tokio::test]
    async fn bytes_are_read_by_the_async_threads() {
        let (pulse, now) = (Pulse::default(), Instant::now());
        pulse.beat(now);
        assert!(pulse.shared.lock().under_way.is_some());
        pulse.beat(now + INTERVAL);
        while pulse.shared.lock().under_way.is_some() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pulse.shared.lock().last, Some(now), "one byte at a time");
    }

    #[test]
    fn without_an_async_runtime_nothing_is_sent() {
        let pulse = Pulse::default();
        pulse.beat(Instant::now());
        assert!(pulse.shared.lock().under_way.is_none());
    }
}
