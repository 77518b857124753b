//! Lower priority of the threads that compute, below those that read and answer requests.

use std::cell::Cell;

use rustix::{process::setpriority_process, thread::gettid};

/// Niceness of threads that compute. Reading a request costs a fraction of answering it, so the
/// threads that read must not wait. A request that waits to be read is late before the server knows
/// of it.
const NICENESS: i32 = 5;

thread_local! {
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Lowers this thread's priority below the others of the process, if the system allows it.
pub(crate) fn give_way() {
    if GIVES_WAY.replace(true) {
        return;
    }
    if let Err(error) = setpriority_process(Some(gettid()), NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}
