//! Caches of keys and values: the networks that keep them, and the names of their inputs.
//!
//! The tokens of a step lie packed, `[tokens, width]`. A cache has a slot for each
//! sequence, `[slots, heads, capacity, head width]`.

use crate::family::CacheType;

/// Name of the packed row of each token of each slot, `[slots, longest]` INT64.
pub const ROWS: &str = "rows";
/// Name of the place of each packed token: its slot, and its number there, `[tokens, 2]` INT64.
pub const PLACES: &str = "places";
/// Name of the position of each packed token in its sequence, `[1, tokens]` INT64.
pub const POSITIONS: &str = "positions";
/// Name of the last position of each slot after the step, `[slots]` INT32.
pub const LENGTHS: &str = "seqlens_k";
/// Name of the capacity of a slot, a scalar of INT32.
pub const TOTAL_LENGTH: &str = "total_sequence_length";
/// Name of the number of tokens of each slot in the step, `[slots]` INT32.
pub const QUERY_LENGTHS: &str = "query_seqlens";
/// Name of the cosines of the positions' rotations, `[capacity, head width / 2]` FP32.
pub const COSINES: &str = "cosines";
/// Name of the sines of the positions' rotations, `[capacity, head width / 2]` FP32.
pub const SINES: &str = "sines";
/// Name of the scales of 8-bit keys, one for each channel of a head, `[heads · head width]` FP32.
pub const KEY_SCALES: &str = "key_scales";
/// Name of the scales of 8-bit values, `[heads · head width]` FP32.
pub const VALUE_SCALES: &str = "value_scales";
/// Name of the keys before the step.
pub const PAST_KEYS: &str = "past_key";
/// Name of the values before the step.
pub const PAST_VALUES: &str = "past_value";
/// Name of the keys after the step, which lie where those before it lay.
pub const PRESENT_KEYS: &str = "present_key";
/// Name of the values after the step, which lie where those before it lay.
pub const PRESENT_VALUES: &str = "present_value";

/// Inputs that a step hands to a network with a cache.
pub(super) const STEP_INPUTS: [&str; 8] =
    [ROWS, PLACES, POSITIONS, LENGTHS, TOTAL_LENGTH, QUERY_LENGTHS, COSINES, SINES];

/// Cache of an attention module: keys and values of each position of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheSpec {
    /// Number of heads of keys and values.
    pub num_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Type of the elements.
    pub cache_type: CacheType,
    /// Pairs of a head's elements that positions turn.
    pub pairs: Pairs,
}

/// Pairs of a head's elements that positions turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// An element of the first half and the one at its place in the second half.
    Halves,
    /// Neighbours.
    Neighbours,
}

/// Settings of a network that keeps caches.
#[derive(Debug, Clone, PartialEq)]
pub struct Cached {
    /// Caches of the network: one, or one for each attention module of a chain.
    pub caches: Vec<CacheSpec>,
    /// Angles between neighbouring positions, of each pair of a head's elements (rotary positions).
    pub frequencies: Vec<f32>,
}

impl CacheSpec {
    /// Returns the number of elements of one position's keys.
    pub fn width(&self) -> usize {
        self.num_heads * self.head_width
    }

    /// Returns the element of a head that positions turn together with the element `index`.
    pub fn partner(&self, index: usize) -> usize {
        match self.pairs {
            Pairs::Neighbours => index ^ 1,
            Pairs::Halves => (index + self.head_width / 2) % self.head_width,
        }
    }

    /// Returns the size of one position's keys and values, in bytes.
    pub fn bytes_per_token(&self) -> u64 {
        (2 * self.width() * self.cache_type.num_bytes()) as u64
    }
}
