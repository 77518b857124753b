//! The likely length of texts before they are tokenized.

use super::follow::{Bounds, Follower, Rates};

/// Rates of the tokens-per-byte estimate: it settles at the 1st percentile.
const RATES: Rates = Rates { rise: 0.001, fall: 0.1 };

/// Tokens of a byte at first, and their bounds.
const AT_FIRST: f64 = 0.1;
const BOUNDS: Bounds = Bounds { least: 0.025, most: 0.4 };

/// Estimate of texts' lengths, so that one which comes too late anyway is not tokenized.
#[derive(Debug)]
pub(super) struct Foresight {
    tokens_per_byte: Follower,
    /// Length at which texts are cut.
    max_tokens: usize,
}

impl Foresight {
    /// Creates the estimate for texts that are cut at `max_tokens`.
    pub(super) fn new(max_tokens: usize) -> Self {
        Self { tokens_per_byte: Follower::new(AT_FIRST), max_tokens }
    }

    /// Returns the least number of tokens that the longest of `texts` is likely to have.
    pub(super) fn tokens(&self, texts: &[String]) -> usize {
        let rate = self.tokens_per_byte.get();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "texts are bounded, and a part of a token does not count"
        )]
        let tokens = (longest(texts) * rate) as usize;
        tokens.clamp(1, self.max_tokens.max(1))
    }

    /// Learns that the longest of `texts` has `tokens`; nothing where it was cut.
    #[expect(clippy::cast_precision_loss, reason = "texts are bounded")]
    pub(super) fn learn(&self, texts: &[String], tokens: usize) {
        if tokens >= self.max_tokens {
            return;
        }
        let rate = tokens as f64 / longest(texts).max(1.0);
        self.tokens_per_byte.follow(rate, RATES, BOUNDS);
    }
}

#[expect(clippy::cast_precision_loss, reason = "texts are bounded")]
fn longest(texts: &[String]) -> f64 {
    texts.iter().map(String::len).max().unwrap_or(0) as f64
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
}
