//! Quantities with units.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Number of bytes. Displayed as `64.0 MB`; parsed from `64MB`, `64 MiB`, `1.5GB` or a plain number
/// of bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ByteSize(pub u64);

/// Error for a text that is not a [`ByteSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: write a number with B, KB, MB, GB, KiB, MiB or GiB, such as 64MiB")]
pub struct ParseByteSizeError(String);

/// Units by descending size, the binary ones first, with their size in bytes.
const UNITS: [(&str, u64); 7] = [
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

impl ByteSize {
    /// Returns the size in megabytes of 10⁶ bytes.
    #[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^53 bytes")]
    pub fn megabytes(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Returns the number of bytes as a `usize`, or `usize::MAX` if it is larger.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000 => write!(formatter, "{} B", self.0),
            1_000..1_000_000 => write!(formatter, "{:.1} KB", self.megabytes() * 1e3),
            _ => write!(formatter, "{:.1} MB", self.megabytes()),
        }
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseByteSizeError(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number, *unit)))
            .unwrap_or((&lower, 1));
        let number: f64 = number.trim().parse().map_err(|_| refused())?;
        #[expect(clippy::cast_precision_loss, reason = "units are small powers")]
        let size = number * unit as f64;
        if !(0.0..1e15).contains(&size) {
            return Err(refused());
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was checked"
        )]
        Ok(Self(size as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_decimal_and_binary_units() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("12", 12), ("3kb", 3_000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MB", "-1MB", "NaN", "1e99GB", "7 parsecs"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
