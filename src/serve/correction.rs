//! Correcting predictions by what requests really took.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How fast the correction follows a request that took longer, and one that took less: unequal, so
/// that it settles where about one request in five takes longer than predicted.
const RISE: f64 = 0.1;
const FALL: f64 = 0.025;

/// How far one request may stand from the correction before the rest is taken for an accident.
const ACCIDENT: f64 = 2.0;

/// The bounds of the correction.
const LEAST: f64 = 0.5;
const MOST: f64 = 8.0;

/// How much longer modules take now than when they were profiled: a busier or slower machine.
#[derive(Debug)]
pub(super) struct Correction(AtomicU64);

impl Default for Correction {
    fn default() -> Self {
        Self(AtomicU64::new(1.0_f64.to_bits()))
    }
}

impl Correction {
    /// Returns the factor by which profiled latencies are multiplied.
    pub(super) fn factor(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Learns from a request whose profiled latency was `profiled` and which ran for `measured`.
    ///
    /// Two requests that end at once may overwrite each other; one lesson more or less does not
    /// matter.
    pub(super) fn learn(&self, profiled: Duration, measured: Duration) {
        let ratio = measured.as_secs_f64() / profiled.as_secs_f64().max(1e-6);
        let factor = self.factor();
        let rate = if ratio > factor { RISE } else { FALL };
        let next = factor * (ratio / factor).clamp(1.0 / ACCIDENT, ACCIDENT).powf(rate);
        self.0.store(next.clamp(LEAST, MOST).to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slower_machine_is_learned_and_unlearned() {
        let correction = Correction::default();
        let (profiled, slow) = (Duration::from_millis(10), Duration::from_millis(15));
        (0..100).for_each(|_| correction.learn(profiled, slow));
        assert!((correction.factor() - 1.5).abs() < 0.01, "{}", correction.factor());
        (0..400).for_each(|_| correction.learn(profiled, profiled));
        assert!((correction.factor() - 1.0).abs() < 0.01, "{}", correction.factor());
    }

    #[test]
    fn one_absurd_request_moves_it_within_its_bounds() {
        let correction = Correction::default();
        correction.learn(Duration::ZERO, Duration::from_secs(3_600));
        assert!(correction.factor() <= MOST);
        (0..500).for_each(|_| correction.learn(Duration::from_secs(1), Duration::ZERO));
        assert!(correction.factor() >= LEAST);
    }
}
