//! Random numbers by seed, answer and position.
//!
//! A number follows from these three alone, so that a text repeats whatever else a server does, and
//! wherever a preempted answer goes on.

use sha2::{Digest, Sha256};

/// Returns a number in 0..1: the first 53 bits of SHA-256 over `seed`, `answer` and `position`,
/// each as 8 bytes, the lowest first.
pub(super) fn uniform(seed: u64, answer: u64, position: u64) -> f64 {
    let mut digest = Sha256::new();
    for number in [seed, answer, position] {
        digest.update(number.to_le_bytes());
    }
    let digest: [u8; 32] = digest.finalize().into();
    let (first, _) = digest.split_first_chunk().unwrap_or((&[0; 8], &[]));
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let bits = (u64::from_be_bytes(*first) >> 11) as f64;
    bits / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_seed_answer_and_position() {
        assert_eq!(uniform(1, 2, 3).to_bits(), uniform(1, 2, 3).to_bits());
        let numbers = [uniform(1, 2, 3), uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4)];
        for (index, number) in numbers.iter().enumerate() {
            assert!((0.0..1.0).contains(number));
            assert!(numbers[..index].iter().all(|other| (other - number).abs() > 0.0));
        }
    }

    #[test]
    fn numbers_are_spread_evenly() {
        let numbers: Vec<f64> = (0..16_000).map(|position| uniform(7, 0, position)).collect();
        let excess = |part: u32| {
            let in_part =
                |number: &&f64| (f64::from(part)..f64::from(part + 1)).contains(&(**number * 16.0));
            let count: u32 = numbers.iter().filter(in_part).map(|_| 1).sum();
            (f64::from(count) - 1000.0).powi(2) / 1000.0
        };
        let chi_square: f64 = (0..16).map(excess).sum();
        // The 99.9th percentile of the distribution with 15 degrees of freedom.
        assert!(chi_square < 37.7, "{chi_square}");
    }
}
