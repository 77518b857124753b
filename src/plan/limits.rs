//! Bounds of what the room reads.

/// Largest latency budget, about eleven days.
pub const MAX_LATENCY_BUDGET_MS: f64 = 1e9;

/// Largest memory budget, an exabyte.
pub const MAX_MEMORY_BUDGET_MB: f64 = 1e12;

/// Longest plan id in bytes: of plans that are offered, and of those that are asked for.
pub const MAX_PLAN_ID_BYTES: usize = 4_096;

/// Largest value at a knot; no interpolation or sum of chunks can overflow.
pub(super) const MAX_VALUE: f64 = 1e18;
