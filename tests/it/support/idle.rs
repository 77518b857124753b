//! Progress of work that must not begin.

use tessera::fit::Progress;

/// Progress that no phase may be announced to.
pub(crate) struct Idle;

impl Progress for Idle {
    fn phase(&self, name: &str, length: u64) {
        panic!("{name} begins, with {length} steps");
    }

    fn step(&self) {}

    fn note(&self, _message: &str) {}
}
