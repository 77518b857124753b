//! Progress of loading a family, told in the log.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use crate::fit::{Progress, ends_a_tenth};

/// Progress of one family, which is stopped with the server.
pub(super) struct LoadProgress<'a> {
    family: &'a str,
    stop: &'a CancellationToken,
    phase: Mutex<Phase>,
}

/// Part of the work.
struct Phase {
    name: String,
    /// Number of steps.
    length: u64,
    /// Number of steps that are done.
    done: u64,
    begun: Instant,
}

impl<'a> LoadProgress<'a> {
    /// Creates the progress of `family`, whose loading ends when `stop` is cancelled.
    pub(super) fn new(family: &'a str, stop: &'a CancellationToken) -> Self {
        let phase = Phase { name: String::new(), length: 0, done: 0, begun: Instant::now() };
        Self { family, stop, phase: Mutex::new(phase) }
    }
}

impl Progress for LoadProgress<'_> {
    fn phase(&self, name: &str, length: u64) {
        let phase = Phase { name: name.to_owned(), length, done: 0, begun: Instant::now() };
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        tracing::info!(family = self.family, phase = name, steps = length, "begun");
    }

    fn step(&self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        phase.done += 1;
        let Phase { name, length, done, begun } = &*phase;
        if ends_a_tenth(*done, *length) {
            let seconds = format!("{:.1}", begun.elapsed().as_secs_f64());
            tracing::info!(family = self.family, phase = name, done, of = length, seconds);
        }
    }

    fn note(&self, message: &str) {
        tracing::info!(family = self.family, "{message}");
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::FitError;

    #[test]
    fn work_goes_on_until_the_server_stops() {
        let stop = CancellationToken::new();
        let progress = LoadProgress::new("text", &stop);
        progress.phase("profile", 3);
        (0..4).for_each(|_| progress.step());
        assert!(progress.go_on().is_ok());
        stop.cancel();
        assert!(matches!(progress.go_on(), Err(FitError::Stopped)));
    }
}
