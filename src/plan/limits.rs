//! Bounds of what the room reads.

/// The largest latency budget, about eleven days.
pub const MAX_LATENCY_BUDGET_MS: f64 = 1e9;

/// The largest memory budget, an exabyte.
pub const MAX_MEMORY_BUDGET_MB: f64 = 1e12;

/// The longest plan id that is looked up.
pub const MAX_PLAN_ID_BYTES: usize = 1024;

/// The largest value at a knot; no interpolation or sum of chunks can overflow.
pub(super) const MAX_VALUE: f64 = 1e18;
