//! How fast the machine is now, and how far it may be off.

use std::time::Duration;

use super::follow::Follower;

/// How fast the factor follows what batches take.
const FOLLOW: f64 = 0.08;

/// How fast what one batch in five exceeds follows a batch that exceeds it, and one that does not:
/// unequal, so that it settles there.
const CAREFUL: (f64, f64) = (0.1, 0.025);

/// The same for the reserve, which about one batch in fifty outlasts.
const RESERVE: (f64, f64) = (0.3, 0.002);

/// The largest reserve.
const MOST_RESERVED: f64 = 2.0;

/// The bounds of the factor.
const LEAST: f64 = 0.125;
const MOST: f64 = 8.0;

/// How much longer modules take now than by what is known of them: a busier or slower machine.
#[derive(Debug)]
pub(super) struct Correction {
    factor: Follower,
    care: Follower,
    reserve: Follower,
    /// Seconds between a batch and its answers.
    answering: Follower,
}

impl Default for Correction {
    fn default() -> Self {
        let one = || Follower::new(1.0);
        Self { factor: one(), care: one(), reserve: one(), answering: Follower::new(1e-4) }
    }
}

impl Correction {
    /// Returns how many times its known latency a batch takes now.
    pub(super) fn factor(&self) -> f64 {
        self.factor.get()
    }

    /// Returns the factor that one batch in five exceeds: what is chosen must fit with it.
    pub(super) fn careful(&self) -> f64 {
        self.factor.get() * self.care.get()
    }

    /// Returns how many times its careful latency a batch may take, but for one in fifty.
    pub(super) fn reserve(&self) -> f64 {
        self.reserve.get()
    }

    /// Returns what passes between the end of a batch and that of its requests.
    pub(super) fn answering(&self) -> Duration {
        Duration::from_secs_f64(self.answering.get())
    }

    /// Learns from a batch that was known to take `known` and took `measured`.
    pub(super) fn learn(&self, known: Duration, measured: Duration) {
        let ratio = measured.as_secs_f64() / known.as_secs_f64().max(1e-6);
        let (factor, careful) = (self.factor(), self.careful());
        self.reserve.follow(ratio / careful, RESERVE, (1.0, MOST_RESERVED));
        self.care.follow(ratio / factor, CAREFUL, (1.0, MOST_RESERVED));
        self.factor.follow(ratio, (FOLLOW, FOLLOW), (LEAST, MOST));
    }

    /// Learns from a request that was answered `time` after its batch was done.
    pub(super) fn learn_answering(&self, time: Duration) {
        self.answering.follow(time.as_secs_f64(), (FOLLOW, FOLLOW), (1e-6, 1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slower_machine_is_learned_and_unlearned() {
        let correction = Correction::default();
        let (known, slow) = (Duration::from_millis(10), Duration::from_millis(15));
        (0..100).for_each(|_| correction.learn(known, slow));
        assert!((correction.factor() - 1.5).abs() < 0.01, "{}", correction.factor());
        (0..400).for_each(|_| correction.learn(known, known));
        assert!((correction.factor() - 1.0).abs() < 0.01, "{}", correction.factor());
    }

    #[test]
    fn the_reserve_covers_what_is_seldom_longer() {
        let correction = Correction::default();
        for index in 0..5_000 {
            let milliseconds = if index % 25 == 0 { 14 } else { 10 };
            correction.learn(Duration::from_millis(10), Duration::from_millis(milliseconds));
        }
        let longest = correction.careful() * correction.reserve();
        assert!((1.3..1.5).contains(&longest), "{longest}");
        assert!(correction.careful() < 1.1, "{}", correction.careful());
    }

    #[test]
    fn what_one_batch_in_five_exceeds_is_told_apart_from_the_middle() {
        let correction = Correction::default();
        for index in 0..5_000_u64 {
            let milliseconds = 8 + (index * 7) % 5;
            correction.learn(Duration::from_millis(10), Duration::from_millis(milliseconds));
        }
        assert!((0.94..1.06).contains(&correction.factor()), "{}", correction.factor());
        assert!((1.05..1.25).contains(&correction.careful()), "{}", correction.careful());
    }

    #[test]
    fn one_absurd_batch_moves_it_within_its_bounds() {
        let correction = Correction::default();
        correction.learn(Duration::ZERO, Duration::from_secs(3_600));
        assert!(correction.factor() <= MOST);
        (0..500).for_each(|_| correction.learn(Duration::from_secs(1), Duration::ZERO));
        assert!(correction.factor() >= LEAST);
    }
}
