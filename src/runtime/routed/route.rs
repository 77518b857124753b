//! Routing: from a router's scores to the ways that rows take. A way is an expert or an attention
//! branch. Pure.

use crate::module::{Order, Router, Weighting};

/// Rows by the ways that they take, with their weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routes {
    /// Rows that take each way, in ascending order.
    pub(crate) ways: Vec<Vec<Taken>>,
    /// Number of rows that were routed.
    pub(crate) num_rows: usize,
}

/// A row that takes a way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Taken {
    /// Index of the row.
    pub(crate) row: usize,
    /// Rank of this way among the row's choices; 0 has the largest score.
    pub(crate) slot: usize,
    /// Factor on the way's output.
    pub(crate) weight: f32,
}

/// Error for a score that is infinite or not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotANumber {
    /// Index of the row.
    pub(crate) row: usize,
    /// Index of the router's output with this score.
    pub(crate) way: usize,
}

/// Routes every row for which `is_token` holds by its scores. Of equal scores the first way is
/// taken.
///
/// # Shapes
///
/// - scores: \[rows, ways\]
///
/// # Errors
///
/// Fails when a score of a routed row is infinite or not a number.
pub(crate) fn route(
    router: &Router,
    scores: &[f32],
    is_token: impl Fn(usize) -> bool,
) -> Result<Routes, NotANumber> {
    let mut routes = Routes { ways: vec![Vec::new(); router.num_ways], num_rows: 0 };
    let allowed: Vec<usize> = match &router.allowed {
        Some(allowed) => allowed.clone(),
        None => (0..router.num_ways).collect(),
    };
    let mut ranked: Vec<(usize, f32)> = Vec::with_capacity(allowed.len());
    for (row, scores) in scores.chunks_exact(router.num_ways.max(1)).enumerate() {
        if !is_token(row) {
            continue;
        }
        if let Some(way) = scores.iter().position(|score| !score.is_finite()) {
            return Err(NotANumber { row, way });
        }
        ranked.clear();
        ranked.extend(allowed.iter().map(|way| (*way, scores[*way])));
        choose(router, &mut ranked);
        for (slot, (way, weight)) in ranked.iter().enumerate() {
            routes.ways[*way].push(Taken { row, slot, weight: weight * router.scale });
        }
        routes.num_rows += 1;
    }
    Ok(routes)
}

/// Replaces all ways and their scores by the chosen ways and their weights, the largest first.
fn choose(router: &Router, ranked: &mut Vec<(usize, f32)>) {
    let k = router.top_k.min(ranked.len());
    // Weights of one need no probabilities, because scores have the same order.
    let needs_none =
        router.weighting == Weighting::One && !matches!(router.order, Order::Threshold(_));
    if router.order != Order::TopKThenSoftmax && !needs_none {
        softmax(ranked);
    }
    keep_largest(ranked, k);
    match router.order {
        _ if needs_none => {}
        Order::SoftmaxThenTopK => {}
        Order::TopKThenSoftmax => softmax(ranked),
        Order::Threshold(least) => {
            let reached = ranked.iter().take_while(|(_, probability)| *probability >= least);
            let count = reached.count().max(1);
            ranked.truncate(count);
        }
    }
    if router.renormalize {
        let sum: f32 = ranked.iter().map(|(_, weight)| weight).sum();
        ranked.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
    if router.weighting == Weighting::One {
        ranked.iter_mut().for_each(|(_, weight)| *weight = 1.0);
    }
}

/// Keeps the `k` largest scores in descending order; of equal scores the first way comes first.
/// Ways are few, so an insertion sort suffices.
fn keep_largest(ranked: &mut Vec<(usize, f32)>, k: usize) {
    let is_larger = |a: (usize, f32), b: (usize, f32)| a.1.total_cmp(&b.1).is_gt();
    for next in 0..ranked.len() {
        let candidate = ranked[next];
        let kept = next.min(k);
        let mut place = kept;
        while place > 0 && is_larger(candidate, ranked[place - 1]) {
            place -= 1;
        }
        if place < k {
            ranked.copy_within(place..kept.min(k - 1), place + 1);
            ranked[place] = candidate;
        }
    }
    ranked.truncate(k);
}

fn softmax(scores: &mut [(usize, f32)]) {
    let largest = scores.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|(_, score)| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().map(|(_, score)| score).sum();
    scores.iter_mut().for_each(|(_, score)| *score /= sum);
}

impl Routes {
    /// Merges ways that lead to one network. A row that takes several of them takes the network
    /// once, with the sum of their weights (MC-SMoE, section 3). `group_of` is the network of each
    /// way.
    pub(crate) fn merged(self, group_of: &[usize], num_groups: usize) -> Self {
        if group_of.iter().enumerate().all(|(way, group)| way == *group) {
            return self;
        }
        let mut ways: Vec<Vec<Taken>> = vec![Vec::new(); num_groups];
        for (way, taken) in self.ways.into_iter().enumerate() {
            ways[group_of[way]].extend(taken);
        }
        for taken in &mut ways {
            taken.sort_by_key(|taken| (taken.row, taken.slot));
            taken.dedup_by(|next, first| {
                let is_same = next.row == first.row;
                if is_same {
                    first.weight += next.weight;
                }
                is_same
            });
        }
        Self { ways, num_rows: self.num_rows }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
