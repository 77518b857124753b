//! Numbers that are learned.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far one lesson may stand from the number before the rest is taken for an accident.
const ACCIDENT: f64 = 2.0;

/// A positive number that follows others, from several threads: two lessons at once may overwrite
/// each other, and one more or less does not matter.
#[derive(Debug)]
pub(super) struct Follower(AtomicU64);

impl Follower {
    pub(super) fn new(value: f64) -> Self {
        Self(AtomicU64::new(value.to_bits()))
    }

    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Moves towards `target` within bounds, upwards and downwards at rates that may differ: it
    /// comes to stand where it is moved as far up as down.
    pub(super) fn follow(&self, target: f64, (rise, fall): (f64, f64), (least, most): (f64, f64)) {
        let value = self.get();
        let rate = if target > value { rise } else { fall };
        let next = value * step(target / value, rate);
        self.0.store(next.clamp(least, most).to_bits(), Ordering::Relaxed);
    }
}

/// Returns what a number is multiplied by when it follows another that is `ratio` times as large.
pub(super) fn step(ratio: f64, rate: f64) -> f64 {
    ratio.clamp(1.0 / ACCIDENT, ACCIDENT).powf(rate)
}
