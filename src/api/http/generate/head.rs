//! Fields that every part of an answer has.

use schemars::JsonSchema;
use serde::Serialize;

use crate::serve::unix_time;

/// Fields that every part of an answer has.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Head {
    id: String,
    object: &'static str,
    /// Time in seconds since 1970.
    created: u64,
    model: String,
}

/// Names by which an answer tells its form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Beginning of ids.
    pub(super) id: &'static str,
    /// Object of a whole answer, and of an event.
    pub(super) whole: &'static str,
    pub(super) event: &'static str,
}

impl Head {
    /// Creates the head of a new answer of `model`.
    pub(super) fn new(names: Names, is_stream: bool, model: String) -> Self {
        let id = format!("{}-{:032x}", names.id, rand::random::<u128>());
        let object = if is_stream { names.event } else { names.whole };
        Self { id, object, created: unix_seconds(), model }
    }
}

/// Returns the seconds since 1970; 0 by a clock that is set to an earlier time.
pub(super) fn unix_seconds() -> u64 {
    unix_time().unwrap_or_default().as_secs()
}
