//! The threads that compute give way to those that read and answer requests.

use std::cell::Cell;

use rustix::{process::setpriority_process, thread::gettid};

/// Niceness of threads that compute. Reading a request costs a fraction of answering it, so the
/// threads that read are to wait for nothing: what waits to be read is late before it is known.
const NICENESS: i32 = 5;

thread_local! {
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread give way to others of the process from now on, if the system lets it.
pub(super) fn give_way() {
    if GIVES_WAY.replace(true) {
        return;
    }
    if let Err(error) = setpriority_process(Some(gettid()), NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}
