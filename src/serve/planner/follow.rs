//! Learned numbers: lasting ones, and transient ones that load causes and that pass with it.
//!
//! This module reads no clock.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Largest ratio between a lesson and the number. A larger one is an accident and is cut to this.
const ACCIDENT: f64 = 2.0;

/// Time without lessons after which a [`Transient`] has forgotten half of what it learned.
const HALF_LIFE: Duration = Duration::from_millis(250);

/// Time without lessons after which a [`Transient`] has forgotten everything.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(2);

/// Rates at which a number follows its lessons, upwards and downwards. The number settles where the
/// expected moves up and down are equal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) rise: f64,
    pub(crate) fall: f64,
}

/// Least and largest value of a number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// A positive number that follows its lessons, from several threads. Two lessons at the same time
/// may overwrite each other; one lost lesson does not matter.
#[derive(Debug)]
pub(crate) struct Follower(AtomicU64);

impl Follower {
    /// Creates a number that starts at `value`.
    pub(crate) fn new(value: f64) -> Self {
        Self(AtomicU64::new(value.to_bits()))
    }

    /// Returns the number.
    pub(crate) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Moves the number towards `target` at `rates`, within `bounds`.
    pub(crate) fn follow(&self, target: f64, rates: Rates, bounds: Bounds) {
        let next = moved(self.get(), target, rates).clamp(bounds.least, bounds.most);
        self.0.store(next.to_bits(), Ordering::Relaxed);
    }
}

/// A positive number that follows its lessons and returns to its neutral value when they end. It is
/// exactly neutral after [`FORGOTTEN`], so no lesson outlasts the load.
#[derive(Debug)]
pub(crate) struct Transient {
    neutral: f64,
    /// Value, and the time at which it was learned; `None` before the first lesson.
    learned: Mutex<Option<(f64, Instant)>>,
}

impl Transient {
    /// Creates a number that is `neutral` without lessons.
    pub(crate) fn new(neutral: f64) -> Self {
        Self { neutral, learned: Mutex::default() }
    }

    /// Returns the number at `now`.
    pub(crate) fn get(&self, now: Instant) -> f64 {
        self.faded(*self.learned.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    /// Moves the number towards `target` at `now` and at `rates`, within `bounds`.
    pub(crate) fn follow(&self, now: Instant, target: f64, rates: Rates, bounds: Bounds) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        let next = moved(self.faded(*learned, now), target, rates);
        *learned = Some((next.clamp(bounds.least, bounds.most), now));
    }

    fn faded(&self, learned: Option<(f64, Instant)>, now: Instant) -> f64 {
        let Some((value, at)) = learned else {
            return self.neutral;
        };
        self.neutral * (value / self.neutral).powf(remaining(now.saturating_duration_since(at)))
    }
}

/// Returns the fraction of a transient lesson that remains `age` after it.
pub(crate) fn remaining(age: Duration) -> f64 {
    if age >= FORGOTTEN {
        return 0.0;
    }
    0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

fn moved(value: f64, target: f64, rates: Rates) -> f64 {
    let rate = if target > value { rates.rise } else { rates.fall };
    value * step(target / value, rate)
}

/// Returns the factor by which a number moves at `rate` towards another, `ratio` times as large.
pub(crate) fn step(ratio: f64, rate: f64) -> f64 {
    ratio.clamp(1.0 / ACCIDENT, ACCIDENT).powf(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { rise: 0.5, fall: 0.5 };
    const BOUNDS: Bounds = Bounds { least: 0.1, most: 8.0 };

    #[test]
    fn what_load_has_taught_fades_and_is_forgotten() {
        let (number, start) = (Transient::new(1.0), Instant::now());
        assert!((number.get(start) - 1.0).abs() < 1e-12);
        (0..100).for_each(|_| number.follow(start, 4.0, RATES, BOUNDS));
        assert!((number.get(start) - 4.0).abs() < 1e-6, "{}", number.get(start));
        let half = number.get(start + HALF_LIFE);
        assert!((half - 2.0).abs() < 1e-6, "{half}");
        assert_eq!(number.get(start + FORGOTTEN).to_bits(), 1.0_f64.to_bits());
    }

    #[test]
    fn a_lesson_after_a_rest_starts_from_the_neutral_value() {
        let (number, start) = (Transient::new(1.0), Instant::now());
        (0..100).for_each(|_| number.follow(start, 8.0, RATES, BOUNDS));
        number.follow(start + FORGOTTEN, 1.0, RATES, BOUNDS);
        let after = number.get(start + FORGOTTEN);
        assert!((after - 1.0).abs() < 1e-12, "{after}");
    }

    #[test]
    fn a_clock_that_a_caller_read_earlier_changes_nothing() {
        let (number, start) = (Transient::new(1.0), Instant::now() + Duration::from_secs(1));
        number.follow(start, 2.0, RATES, BOUNDS);
        let learned = number.get(start);
        assert_eq!(number.get(start - Duration::from_secs(1)).to_bits(), learned.to_bits());
    }
}
