//! Room that admission leaves behind other requests.
//!
//! This module reads no clock.

use std::time::Instant;

use crate::serve::planner::follow::remaining;

/// Strictness added when an admitted job is late at its turn. `LAXER` is the fraction of it that
/// remains after any other batch.
const STRICTER: f64 = 0.25;
const LAXER: f64 = 0.99;

/// Fraction of a full batch's extra time that admission leaves behind other requests. Load causes
/// it, and it fades with the load.
#[derive(Debug, Default)]
pub(super) struct Strictness {
    value: f64,
    /// Time at which an admitted job was last late at its turn; `None` before the first.
    raised: Option<Instant>,
}

impl Strictness {
    /// Returns the strictness at `now`, from 0 to 1.
    pub(super) fn at(&self, now: Instant) -> f64 {
        let age = |raised| now.saturating_duration_since(raised);
        self.raised.map_or(0.0, |raised| self.value * remaining(age(raised)))
    }

    /// Raises the strictness at `now`, since an admitted job was late at its turn.
    pub(super) fn raise(&mut self, now: Instant) {
        *self = Self { value: (self.at(now) + STRICTER).min(1.0), raised: Some(now) };
    }

    /// Lowers the strictness, since a batch was in time.
    pub(super) fn lower(&mut self) {
        self.value *= LAXER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::planner::follow::FORGOTTEN;

    #[test]
    fn strictness_fades_with_the_load() {
        let (mut strictness, now) = (Strictness::default(), Instant::now());
        (0..10).for_each(|_| strictness.raise(now));
        assert!((strictness.at(now) - 1.0).abs() < 1e-9);
        assert_eq!(strictness.at(now + FORGOTTEN).to_bits(), 0);
    }
}
