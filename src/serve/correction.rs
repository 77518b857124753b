//! Correcting predictions by what requests really took.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How fast the correction follows a request that took longer, and one that took less: unequal, so
/// that it settles where about one request in five takes longer than predicted.
const RISE: f64 = 0.1;
const FALL: f64 = 0.025;

/// The same for the reserve, which about one batch in fifty outlasts.
const RESERVE_RISE: f64 = 0.3;
const RESERVE_FALL: f64 = 0.002;

/// The largest reserve.
const MOST_RESERVED: f64 = 2.0;

/// How far one request may stand from the correction before the rest is taken for an accident.
const ACCIDENT: f64 = 2.0;

/// The bounds of the correction.
const LEAST: f64 = 0.5;
const MOST: f64 = 8.0;

/// How much longer modules take now than when they were profiled: a busier or slower machine.
#[derive(Debug)]
pub(super) struct Correction {
    factor: AtomicU64,
    reserve: AtomicU64,
}

impl Default for Correction {
    fn default() -> Self {
        let one = || AtomicU64::new(1.0_f64.to_bits());
        Self { factor: one(), reserve: one() }
    }
}

impl Correction {
    /// Returns the factor by which profiled latencies are multiplied.
    pub(super) fn factor(&self) -> f64 {
        f64::from_bits(self.factor.load(Ordering::Relaxed))
    }

    /// Returns how many times its predicted latency a batch may take, but for one in fifty.
    pub(super) fn reserve(&self) -> f64 {
        f64::from_bits(self.reserve.load(Ordering::Relaxed))
    }

    /// Learns from a request whose profiled latency was `profiled` and which ran for `measured`.
    ///
    /// Two requests that end at once may overwrite each other; one lesson more or less does not
    /// matter.
    pub(super) fn learn(&self, profiled: Duration, measured: Duration) {
        let ratio = measured.as_secs_f64() / profiled.as_secs_f64().max(1e-6);
        let (factor, reserve) = (self.factor(), self.reserve());
        let beyond = follow(reserve, ratio / factor, (RESERVE_RISE, RESERVE_FALL));
        self.reserve.store(beyond.clamp(1.0, MOST_RESERVED).to_bits(), Ordering::Relaxed);
        let next = follow(factor, ratio, (RISE, FALL));
        self.factor.store(next.clamp(LEAST, MOST).to_bits(), Ordering::Relaxed);
    }
}

/// Moves `value` towards `ratio`, upwards and downwards at different rates.
fn follow(value: f64, ratio: f64, (rise, fall): (f64, f64)) -> f64 {
    let rate = if ratio > value { rise } else { fall };
    value * (ratio / value).clamp(1.0 / ACCIDENT, ACCIDENT).powf(rate)
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
    fn the_reserve_covers_what_is_seldom_longer() {
        let correction = Correction::default();
        for index in 0..5_000 {
            let milliseconds = if index % 25 == 0 { 14 } else { 10 };
            correction.learn(Duration::from_millis(10), Duration::from_millis(milliseconds));
        }
        let longest = correction.factor() * correction.reserve();
        assert!((1.3..1.5).contains(&longest), "{longest}");
        assert!(correction.factor() < 1.1, "{}", correction.factor());
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
