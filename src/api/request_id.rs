//! Ids of requests in the log.

use std::sync::atomic::{AtomicU64, Ordering};

/// Returns an id that no other request of this process has.
pub(super) fn next_request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
