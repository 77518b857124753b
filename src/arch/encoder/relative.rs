//! Attention scores for the distance between two tokens (Raffel et al. 2020, section 2.1).

use crate::{
    arch::ops::float_weight,
    onnx::{Attribute, GraphBuilder, proto::TensorProto},
    tensor::signed,
};

/// Distance from which all tokens share a bucket.
const MAX_DISTANCE: f32 = 128.0;

/// Returns the bucket of every distance from `1 - max_tokens` to `max_tokens - 1`, key minus query.
///
/// One half of the buckets is for keys after the query. In either half, each bucket of the first
/// half holds one distance. The other buckets widen logarithmically.
pub(super) fn buckets(max_tokens: usize, num_buckets: usize) -> Vec<i64> {
    let last = signed(max_tokens) - 1;
    let half = signed(num_buckets / 2);
    (-last..=last)
        .map(|distance| {
            let side = if distance > 0 { half } else { 0 };
            side + one_sided(distance.abs(), half)
        })
        .collect()
}

/// Returns the bucket of `distance` among the `num` buckets of one side.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "distances and buckets are small, and the reference computes in f32"
)]
fn one_sided(distance: i64, num: i64) -> i64 {
    let exact = num / 2;
    if distance < exact {
        return distance;
    }
    let (from, wide) = (exact as f32, (num - exact) as f32);
    let place = (distance as f32 / from).ln() / (MAX_DISTANCE / from).ln() * wide;
    (exact + place as i64).min(num - 1)
}

/// Adds the scores of the tokens of `hidden` from the `[buckets, heads]` weight `table`.
///
/// # Shapes
///
/// - output: \[1, heads, tokens, tokens\]
pub(super) fn scores(
    graph: &mut GraphBuilder,
    hidden: &str,
    table: TensorProto,
    buckets: &[i64],
) -> String {
    let table = float_weight(graph, table);
    let by_head = graph.node("Transpose", &[&table], &[("perm", Attribute::Ints(vec![1, 0]))]);
    let buckets_by_distance = graph.ints(buckets);
    let axis = [("axis", Attribute::Int(1))];
    let by_distance = graph.node("Gather", &[&by_head, &buckets_by_distance], &axis);
    let distances = distances(graph, hidden, buckets.len() / 2);
    let scores = graph.node("Gather", &[&by_distance, &distances], &axis);
    let axis = graph.ints(&[0]);
    graph.node("Unsqueeze", &[&scores, &axis], &[])
}

/// Adds key minus query plus `zero` for all pairs of tokens, `[tokens, tokens]`.
fn distances(graph: &mut GraphBuilder, hidden: &str, zero: usize) -> String {
    let shape = graph.node("Shape", &[hidden], &[]);
    let (start, step) = (graph.int(0), graph.int(1));
    let tokens = graph.node("Gather", &[&shape, &step], &[]);
    let keys = graph.node("Range", &[&start, &tokens, &step], &[]);
    let zero = graph.int(signed(zero));
    let moved = graph.node("Add", &[&keys, &zero], &[]);
    let axis = graph.ints(&[1]);
    let queries = graph.node("Unsqueeze", &[&keys, &axis], &[]);
    graph.node("Sub", &[&moved, &queries], &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_transformers() {
        let buckets = buckets(512, 32);
        let of = |distance: i64| buckets[usize::try_from(distance + 511).expect("in range")];
        let known = [0, 7, 8, 11, 12, 16, 22, 23, 32, 46, 64, 90, 91, 128, 511];
        let before = known.map(|distance| of(-distance));
        assert_eq!(before, [0, 7, 8, 8, 9, 10, 10, 11, 12, 13, 14, 14, 15, 15, 15]);
        assert!((1..512).all(|distance| of(distance) == of(-distance) + 16));
    }
}
