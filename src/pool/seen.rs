//! Texts that fits have seen, by their digests.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Number of hexadecimal digits of a text's digest. Among a million texts, two share one with a
/// probability of about .002.
const DIGITS: usize = 12;

/// Digests of texts, written one after the other in hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SeenTexts(BTreeSet<u64>);

impl SeenTexts {
    /// Returns whether the text with the digest `digest` is one of these.
    pub fn contains(&self, digest: u64) -> bool {
        self.0.contains(&shortened(digest))
    }
}

impl FromIterator<u64> for SeenTexts {
    fn from_iter<I: IntoIterator<Item = u64>>(digests: I) -> Self {
        Self(digests.into_iter().map(shortened).collect())
    }
}

impl From<SeenTexts> for String {
    fn from(texts: SeenTexts) -> Self {
        texts.0.iter().map(|digest| format!("{digest:0DIGITS$x}")).collect()
    }
}

impl TryFrom<String> for SeenTexts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let wrong = || format!("digests of texts have {DIGITS} hexadecimal digits each");
        let (digests, rest) = text.as_bytes().as_chunks::<DIGITS>();
        if !rest.is_empty() {
            return Err(wrong());
        }
        let read = |digest: &[u8; DIGITS]| {
            let digits = std::str::from_utf8(digest).ok()?;
            let is_plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        digests.iter().map(read).collect::<Option<_>>().map(Self).ok_or_else(wrong)
    }
}

/// Returns the first digits of a digest.
fn shortened(digest: u64) -> u64 {
    digest >> (64 - 4 * DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_written_in_digits_and_read_again() {
        let texts: SeenTexts = [u64::MAX, 0x0123_4567_89ab_cdef, 0].into_iter().collect();
        let json = serde_json::to_string(&texts).expect("JSON");
        assert_eq!(json, "\"0000000000000123456789abffffffffffff\"");
        let again: SeenTexts = serde_json::from_str(&json).expect("digests");
        assert_eq!(again, texts);
        assert!(again.contains(0x0123_4567_89ab_0000) && !again.contains(0x0123_4567_89ac_0000));
        for odd in ["\"0\"", "\"00000000000g\"", "\"+00000000000\"", "\"éééééé\"", "3"] {
            assert!(serde_json::from_str::<SeenTexts>(odd).is_err(), "{odd}");
        }
    }
}
