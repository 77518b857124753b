//! Estimates of the length of texts and of preparation times, made before inputs are prepared.

use std::time::{Duration, Instant};

use super::follow::{Bounds, Follower, Rates, Transient};

/// Rates of the tokens-per-byte estimate: it settles at the 1st percentile.
const RATES: Rates = Rates { rise: 0.001, fall: 0.1 };

/// Tokens per byte at first; `BOUNDS` limits the estimate.
const AT_FIRST: f64 = 0.1;
const BOUNDS: Bounds = Bounds { least: 0.025, most: 0.4 };

/// Seconds to prepare a byte without load, and the bounds and rates of the estimate.
const PREPARING: f64 = 1e-7;
const PREPARING_BOUNDS: Bounds = Bounds { least: 1e-9, most: 1e-5 };
const PREPARING_RATES: Rates = Rates { rise: 0.02, fall: 0.02 };

/// Estimates of the tokens and preparation times of inputs. Inputs that come too late are thus
/// refused before they are prepared.
#[derive(Debug)]
pub(crate) struct Foresight {
    tokens_per_byte: Follower,
    preparing: Transient,
    /// Number of tokens at which texts are cut.
    max_tokens: usize,
}

impl Foresight {
    /// Creates the estimates for texts that are cut at `max_tokens`.
    pub(crate) fn new(max_tokens: usize) -> Self {
        let (tokens_per_byte, preparing) = (Follower::new(AT_FIRST), Transient::new(PREPARING));
        Self { tokens_per_byte, preparing, max_tokens }
    }

    /// Returns the estimated time to prepare `num_bytes` at `now`.
    pub(crate) fn preparing(&self, now: Instant, num_bytes: usize) -> Duration {
        Duration::from_secs_f64(self.preparing.get(now) * bytes(num_bytes))
    }

    /// Learns at `now` that it took `time` to prepare `num_bytes`.
    pub(crate) fn learn_preparing(&self, now: Instant, num_bytes: usize, time: Duration) {
        let rate = time.as_secs_f64() / bytes(num_bytes.max(1));
        self.preparing.follow(now, rate, PREPARING_RATES, PREPARING_BOUNDS);
    }

    /// Returns the least number of tokens that the longest of `texts` is likely to have.
    pub(crate) fn tokens(&self, texts: &[String]) -> usize {
        let rate = self.tokens_per_byte.get();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "texts are bounded, and a part of a token does not count"
        )]
        let tokens = (longest(texts) * rate) as usize;
        tokens.clamp(1, self.max_tokens.max(1))
    }

    /// Learns that the longest of `texts` has `tokens` tokens. Learns nothing if it was cut.
    pub(crate) fn learn(&self, texts: &[String], tokens: usize) {
        if tokens >= self.max_tokens {
            return;
        }
        let rate = bytes(tokens) / longest(texts).max(1.0);
        self.tokens_per_byte.follow(rate, RATES, BOUNDS);
    }
}

fn longest(texts: &[String]) -> f64 {
    bytes(texts.iter().map(String::len).max().unwrap_or(0))
}

#[expect(clippy::cast_precision_loss, reason = "inputs are bounded")]
fn bytes(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_expected_to_be_no_longer_than_others_were() {
        let foresight = Foresight::new(512);
        let text = |length| vec!["a".repeat(length)];
        assert_eq!(foresight.tokens(&text(0)), 1);
        for index in 0..20_000 {
            foresight.learn(&text(100), if index % 10 == 0 { 20 } else { 30 });
        }
        let tokens = foresight.tokens(&text(200));
        assert!((30..=42).contains(&tokens), "{tokens}");
    }

    #[test]
    fn preparing_is_expected_to_take_as_long_as_it_took() {
        let (foresight, now) = (Foresight::new(512), Instant::now());
        for _ in 0..1_000 {
            foresight.learn_preparing(now, 1_000, Duration::from_millis(2));
        }
        let expected = foresight.preparing(now, 2_000).as_secs_f64();
        assert!((expected - 0.004).abs() < 1e-5, "{expected}");
    }
}
