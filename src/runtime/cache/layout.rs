//! Layout of a step's tokens among the slots of a slab. Pure.

use crate::tensor::signed;
/// Tokens of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Slot of the sequence.
    pub(super) slot: usize,
    /// Number of positions before the step.
    pub(super) past: usize,
    /// Number of tokens in the step.
    pub(super) num_tokens: usize,
}

/// Places of packed tokens in the slots, and lengths of the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Largest number of tokens of a slot.
    pub(super) longest: usize,
    /// Packed row of each token of each slot, `[slots, longest]`; 0 where there is no token.
    pub(super) rows: Vec<i64>,
    /// Slot of each packed token and its number there, `[tokens, 2]`.
    pub(super) places: Vec<i64>,
    /// Last position of each slot after the step.
    pub(super) lengths: Vec<i32>,
    /// Number of tokens of each slot.
    pub(super) queries: Vec<i32>,
    /// Position of each packed token in its sequence.
    pub(super) positions: Vec<i64>,
}

impl Layout {
    /// Lays out the tokens of `shares`, which are packed in this order, in `num_slots` slots.
    pub(super) fn new(num_slots: usize, shares: &[Share]) -> Self {
        let longest = shares.iter().map(|share| share.num_tokens).max().unwrap_or(0);
        let mut layout = Self {
            longest,
            rows: vec![0; num_slots * longest],
            places: Vec::new(),
            lengths: vec![0; num_slots],
            queries: vec![0; num_slots],
            positions: Vec::new(),
        };
        for Share { slot, past, num_tokens } in shares {
            let start = slot * longest;
            for token in 0..*num_tokens {
                layout.rows[start + token] = signed(layout.positions.len());
                layout.places.extend([signed(*slot), signed(token)]);
                layout.positions.push(signed(past + token));
            }
            layout.lengths[*slot] = small((past + num_tokens).saturating_sub(1));
            layout.queries[*slot] = small(*num_tokens);
        }
        layout
    }
}

/// Returns a length in the operator's integer type.
pub(super) fn small(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_tokens_are_spread_and_packed_again() {
        let shares =
            [Share { slot: 2, past: 5, num_tokens: 3 }, Share { slot: 0, past: 9, num_tokens: 1 }];
        let layout = Layout::new(4, &shares);
        assert_eq!(layout.longest, 3);
        assert_eq!(layout.rows, [3, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0]);
        assert_eq!(layout.places, [2, 0, 2, 1, 2, 2, 0, 0]);
        assert_eq!(layout.lengths, [9, 0, 7, 0]);
        assert_eq!(layout.queries, [1, 0, 3, 0]);
        assert_eq!(layout.positions, [5, 6, 7, 9]);
        for (row, place) in layout.places.chunks_exact(2).enumerate() {
            let place = usize::try_from(place[0] * 3 + place[1]).expect("a place");
            assert_eq!(layout.rows[place], row as i64, "packing undoes spreading");
        }
    }
}
