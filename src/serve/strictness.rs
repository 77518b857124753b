//! How much room is left behind others when requests are admitted.
//!
//! Reads no clock.

use std::time::Instant;

use super::follow::remaining;

/// Strictness added when something admitted is late at its turn, and the fraction of it that
/// remains after any other batch.
const STRICTER: f64 = 0.25;
const LAXER: f64 = 0.99;

/// The fraction of a full batch's time that must be left behind others: load causes it, and it
/// fades with it.
#[derive(Debug, Default)]
pub(super) struct Strictness {
    value: f64,
    /// When something was last late at its turn.
    raised: Option<Instant>,
}

impl Strictness {
    /// Returns the strictness at `now`, from 0 to 1.
    pub(super) fn at(&self, now: Instant) -> f64 {
        let age = |raised| now.saturating_duration_since(raised);
        self.raised.map_or(0.0, |raised| self.value * remaining(age(raised)))
    }

    /// Notes that something admitted was late at its turn.
    pub(super) fn raise(&mut self, now: Instant) {
        *self = Self { value: (self.at(now) + STRICTER).min(1.0), raised: Some(now) };
    }

    /// Notes that a batch was in time.
    pub(super) fn lower(&mut self) {
        self.value *= LAXER;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::follow::FORGOTTEN, *};

    #[test]
    fn strictness_fades_with_the_load() {
        let (mut strictness, now) = (Strictness::default(), Instant::now());
        (0..10).for_each(|_| strictness.raise(now));
        assert!((strictness.at(now) - 1.0).abs() < 1e-9);
        assert_eq!(strictness.at(now + FORGOTTEN).to_bits(), 0);
    }
}
