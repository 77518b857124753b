//! Gathering the rows that take a way, and adding what it made of them. Pure.

use super::route::{Taken, route};
use crate::arch::Router;

/// Routes rows, gathers them by way, and adds up what `way` makes of each way's rows: what a routed
/// module does around its networks. `None` where a score is no number.
///
/// # Shapes
///
/// - scores: \[rows, ways\]
/// - rows: \[rows, `width`\]
pub fn dispatch_and_combine(
    router: &Router,
    scores: &[f32],
    (rows, width): (&[f32], usize),
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

/// Copies the rows that take a way out of `rows`, which are `width` wide.
pub(crate) fn gather(rows: &[f32], width: usize, taken: &[Taken]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(taken.len() * width);
    for Taken { row, .. } in taken {
        gathered.extend_from_slice(&rows[row * width..][..width]);
    }
    gathered
}

/// Adds `made`, a row for each of `taken`, to the rows of `sum` that they come from, each times its
/// weight.
pub(crate) fn combine(sum: &mut [f32], width: usize, taken: &[Taken], made: &[f32]) {
    for (Taken { row, weight, .. }, made) in taken.iter().zip(made.chunks_exact(width)) {
        let sum = &mut sum[row * width..][..width];
        for (sum, made) in sum.iter_mut().zip(made) {
            *sum += weight * made;
        }
    }
}

/// Puts `made`, a row for each of `taken`, where the queries of the row's slots stand.
///
/// # Shapes
///
/// - slots: \[rows, slots a row, width\]
pub(crate) fn place(
    slots: &mut [f32],
    (per_row, width): (usize, usize),
    taken: &[Taken],
    made: &[f32],
) {
    for (Taken { row, slot, .. }, made) in taken.iter().zip(made.chunks_exact(width)) {
        slots[(row * per_row + slot) * width..][..width].copy_from_slice(made);
    }
}

/// Copies what was found for the row's slots that take a way.
///
/// # Shapes
///
/// - slots: \[rows, slots a row, width\]
pub(crate) fn gather_slots(
    slots: &[f32],
    (per_row, width): (usize, usize),
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
