//! Values without meaning that are the same at every run.

/// A deterministic value between −1 and 1 that repeats with no short period.
#[expect(clippy::cast_precision_loss, reason = "only the fraction matters")]
pub(super) fn wave(index: usize) -> f32 {
    let fraction = (index % 100_003) as f32 * 0.618_034;
    (fraction - fraction.floor()) * 2.0 - 1.0
}
