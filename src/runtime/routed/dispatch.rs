//! Pure functions that dispatch rows to ways and combine the results.

use super::route::{Taken, route};
use crate::module::Router;

/// Routes rows, gathers them by way, and adds up the results of `way` on each way's rows. A routed
/// module does this around its networks. Returns `None` if a score is infinite or not a number.
///
/// # Shapes
///
/// - scores: \[rows, ways\]
/// - rows: \[rows, `width`\]
pub fn dispatch_and_combine(
    router: &Router,
    scores: &[f32],
    rows: &[f32],
    width: usize,
    mut way: impl FnMut(usize, Vec<f32>) -> Vec<f32>,
) -> Option<Vec<f32>> {
    let routes = route(router, scores, |_| true).ok()?;
    let mut sum = vec![0.0; rows.len()];
    for (index, taken) in routes.ways.iter().enumerate() {
        let made = way(index, gather(rows, width, taken));
        combine(&mut sum, width, taken, &made);
    }
    Some(sum)
}

/// Returns copies of the rows of `rows`, each `width` wide, that `taken` lists.
pub(crate) fn gather(rows: &[f32], width: usize, taken: &[Taken]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(taken.len() * width);
    for Taken { row, .. } in taken {
        gathered.extend_from_slice(&rows[row * width..][..width]);
    }
    gathered
}

/// Adds each row of `made`, times its weight, to the row of `sum` that it comes from. `made` has a
/// row for each of `taken`.
pub(crate) fn combine(sum: &mut [f32], width: usize, taken: &[Taken], made: &[f32]) {
    for (Taken { row, weight, .. }, made) in taken.iter().zip(made.chunks_exact(width)) {
        let sum = &mut sum[row * width..][..width];
        for (sum, made) in sum.iter_mut().zip(made) {
            *sum += weight * made;
        }
    }
}

/// Copies each row of `made` into the slot of its query. `made` has a row for each of `taken`.
///
/// # Shapes
///
/// - slots: \[rows, `per_row`, `width`\]
pub(crate) fn place(
    slots: &mut [f32],
    per_row: usize,
    width: usize,
    taken: &[Taken],
    made: &[f32],
) {
    for (Taken { row, slot, .. }, made) in taken.iter().zip(made.chunks_exact(width)) {
        slots[(row * per_row + slot) * width..][..width].copy_from_slice(made);
    }
}

/// Returns copies of the slots that `taken` lists.
///
/// # Shapes
///
/// - slots: \[rows, `per_row`, `width`\]
pub(crate) fn gather_slots(
    slots: &[f32],
    per_row: usize,
    width: usize,
    taken: &[Taken],
) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(taken.len() * width);
    for Taken { row, slot, .. } in taken {
        gathered.extend_from_slice(&slots[(row * per_row + slot) * width..][..width]);
    }
    gathered
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
