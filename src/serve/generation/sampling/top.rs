//! The greatest of many numbers, without sorting them.

use std::cmp::Ordering;

/// Token with its logit.
pub(super) type Scored = (u32, f32);

/// Returns the order of tokens by falling logit, then by rising id.
pub(super) fn by_logit(left: &Scored, right: &Scored) -> Ordering {
    right.1.total_cmp(&left.1).then(left.0.cmp(&right.0))
}

/// Finds the `count` greatest of `logits` in one pass; `best` has them afterwards, in no order.
///
/// A buffer of twice as many is cut in half when it is full, and what is not greater than its least
/// is passed over.
pub(super) fn find_top(logits: &[f32], count: usize, best: &mut Vec<Scored>) {
    best.clear();
    if count == 0 {
        return;
    }
    let mut least = f32::NEG_INFINITY;
    for (token, logit) in (0..).zip(logits) {
        if *logit > least || (best.len() < count && *logit == f32::NEG_INFINITY) {
            best.push((token, *logit));
            if best.len() >= count.saturating_mul(2) {
                cut(best, count);
                least = best[count - 1].1;
            }
        }
    }
    cut(best, count);
}

/// Keeps the `count` greatest of `best`, the least of them last.
fn cut(best: &mut Vec<Scored>, count: usize) {
    if best.len() >= count {
        best.select_nth_unstable_by(count - 1, by_logit);
        best.truncate(count);
    }
}

/// Returns the greatest of `logits`, or None if one is not a number.
pub(super) fn greatest(logits: &[f32]) -> Option<f32> {
    const LANES: usize = 16;
    let mut greatest = [f32::NEG_INFINITY; LANES];
    let mut is_broken = [false; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let logit = chunk[lane];
            greatest[lane] = if logit > greatest[lane] { logit } else { greatest[lane] };
            is_broken[lane] |= logit.is_nan();
        }
    }
    let is_broken = is_broken.contains(&true) || rest.iter().any(|logit| logit.is_nan());
    let greatest = greatest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    (!is_broken).then_some(greatest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_that_is_none_is_found() {
        let mut logits = vec![0.5; 40];
        assert_eq!(greatest(&logits), Some(0.5));
        logits[39] = f32::NAN;
        assert_eq!(greatest(&logits), None);
        logits[39] = 1.0;
        logits[3] = f32::NAN;
        assert_eq!(greatest(&logits), None);
        assert_eq!(greatest(&[]), Some(f32::NEG_INFINITY));
    }

    proptest! {
        #[test]
        fn the_greatest_are_those_of_a_sort(
            logits in prop::collection::vec(-4_i8..4, 0..80),
            count in 0_usize..20,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut sorted: Vec<Scored> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(by_logit);
            sorted.truncate(count);
            let mut best = vec![(7, 7.0)];
            find_top(&logits, count, &mut best);
            best.sort_by(by_logit);
            prop_assert_eq!(best, sorted);
            let expected = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(greatest(&logits), Some(expected));
        }
    }
}
