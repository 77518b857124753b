//! An observer that counts what it hears and stops inference threads where a test wants it.

use std::{
    collections::BTreeMap,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tessera::{
    runtime::Residency,
    serve::{Observer, Outcome},
};
use tokio::{sync::watch, time::timeout};

use super::PATIENCE;

/// Numbers of requests so far.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Heard {
    /// Requests that came into the queue.
    pub(crate) queued: usize,
    /// Requests that have ended, refused ones included.
    pub(crate) finished: usize,
    /// Batches that stand still in the middle.
    pub(crate) held: usize,
}

/// Observer that keeps what it hears. It panics or waits on the inference thread if it is told to.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    panics: AtomicBool,
    holds: Mutex<bool>,
    released: Condvar,
    corrections: Mutex<BTreeMap<String, f64>>,
    heard: watch::Sender<Heard>,
}

/// Guard while which batches stand still in the middle.
#[derive(Debug)]
pub(crate) struct Hold<'a>(&'a Watching);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        *self.0.holds.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.released.notify_all();
    }
}

impl Watching {
    /// Makes the next module that has run panic.
    pub(crate) fn panic_next(&self) {
        self.panics.store(true, Ordering::Relaxed);
    }

    /// Lets batches stand still after their next module, until the guard is dropped.
    pub(crate) fn hold(&self) -> Hold<'_> {
        *self.holds.lock().expect("no panic") = true;
        Hold(self)
    }

    /// Waits until `is_so` is true of what was heard.
    pub(crate) async fn until(&self, is_so: impl FnMut(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        let found = timeout(PATIENCE, heard.wait_for(is_so)).await.expect("it comes true");
        *found.expect("the observer is there")
    }

    /// Returns the last ratio between the learned and the profiled latency of `module`.
    pub(crate) fn correction(&self, module: &str) -> f64 {
        self.corrections.lock().expect("no panic")[module]
    }
}

impl Observer for Watching {
    fn accepted(&self, _family: &str) {}

    fn finished(&self, _family: &str, _outcome: &Outcome<'_>) {
        self.heard.send_modify(|heard| heard.finished += 1);
    }

    fn batch_ran(&self, _family: &str, _rows: usize, _correction: f64) {}

    fn module_ran(&self, _family: &str, _module: &str, _time: Duration) {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "as it was told to");
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if *holds {
            self.heard.send_modify(|heard| heard.held += 1);
        }
        while *holds {
            holds = self.released.wait(holds).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn module_corrected(&self, _family: &str, module: &str, ratio: f64) {
        self.corrections.lock().expect("no panic").insert(module.to_owned(), ratio);
    }

    fn residency_changed(&self, _family: &str, _residency: &Residency) {}

    fn queue_changed(&self, _family: &str, change: i64) {
        if change > 0 {
            self.heard.send_modify(|heard| heard.queued += 1);
        }
    }

    fn connections_changed(&self, _protocol: &str, _change: i64) {}

    fn connection_refused(&self, _protocol: &str) {}
}
