//! How long texts are likely to be before they are tokenized.

use super::follow::Follower;

/// How fast the least tokens a byte follow a text with more and one with fewer: about one text in a
/// hundred has fewer.
const RATES: (f64, f64) = (0.001, 0.1);

/// What is taken for the tokens of a byte at first, and their bounds.
const AT_FIRST: f64 = 0.05;
const BOUNDS: (f64, f64) = (1e-4, 1.0);

/// What a family's texts have been like, so that one which comes too late anyway is not tokenized.
#[derive(Debug)]
pub(super) struct Foresight {
    tokens_per_byte: Follower,
}

impl Default for Foresight {
    fn default() -> Self {
        Self { tokens_per_byte: Follower::new(AT_FIRST) }
    }
}

impl Foresight {
    /// Returns how many tokens the longest of `texts` is likely to have at least.
    pub(super) fn tokens(&self, texts: &[String]) -> usize {
        let rate = self.tokens_per_byte.get();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "texts are bounded, and a part of a token does not count"
        )]
        let tokens = (longest(texts) * rate) as usize;
        tokens.max(1)
    }

    /// Learns that the longest of `texts` has so many tokens.
    #[expect(clippy::cast_precision_loss, reason = "texts are bounded")]
    pub(super) fn learn(&self, texts: &[String], tokens: usize) {
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
        let foresight = Foresight::default();
        let text = |length| vec!["a".repeat(length)];
        assert_eq!(foresight.tokens(&text(0)), 1);
        for index in 0..20_000 {
            foresight.learn(&text(100), if index % 10 == 0 { 20 } else { 30 });
        }
        let tokens = foresight.tokens(&text(200));
        assert!((30..=42).contains(&tokens), "{tokens}");
    }
}
