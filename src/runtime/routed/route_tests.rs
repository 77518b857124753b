//! Tests of routing: the ways that rows take, and their weights.

use proptest::prelude::*;

use super::*;

fn router(num_ways: usize, top_k: usize, order: Order) -> Router {
    Router::new(num_ways, top_k, order)
}

/// Returns the ways of row 0 with their weights, the largest score first.
fn taken(router: &Router, scores: &[f32]) -> Vec<(usize, f32)> {
    let routes = route(router, scores, |_| true).expect("numbers");
    let ways = routes.ways.iter().enumerate();
    let mut found: Vec<(usize, usize, f32)> =
        ways.flat_map(|(way, taken)| taken.iter().map(move |t| (t.slot, way, t.weight))).collect();
    found.sort_by_key(|(slot, ..)| *slot);
    found.into_iter().map(|(_, way, weight)| (way, weight)).collect()
}

fn close(found: &[(usize, f32)], expected: &[(usize, f32)]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
}

#[test]
fn probabilities_are_of_all_ways_or_of_those_taken() {
    // The exponentials are 1, 2, 4 and 1, with a sum of 8.
    let scores = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), 0.0];
    let softmax_first = router(4, 2, Order::SoftmaxThenTopK);
    assert!(close(&taken(&softmax_first, &scores), &[(2, 0.5), (1, 0.25)]));
    let renormalized = Router { renormalize: true, ..softmax_first.clone() };
    let of_two = [(2, 2.0 / 3.0), (1, 1.0 / 3.0)];
    assert!(close(&taken(&renormalized, &scores), &of_two));
    assert!(close(&taken(&router(4, 2, Order::TopKThenSoftmax), &scores), &of_two));
    let one = Router { weighting: Weighting::One, ..softmax_first };
    assert!(close(&taken(&one, &scores), &[(2, 1.0), (1, 1.0)]));
    let scaled = Router { scale: 0.5, ..router(4, 1, Order::TopKThenSoftmax) };
    assert!(close(&taken(&scaled, &scores), &[(2, 0.5)]));
}

#[test]
fn a_threshold_takes_what_reaches_it_and_at_least_one() {
    let scores = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), 0.0];
    for (least, k, expected) in [(0.2, 4, 2), (0.9, 4, 1), (0.1, 4, 4), (0.1, 3, 3)] {
        assert_eq!(taken(&router(4, k, Order::Threshold(least)), &scores).len(), expected);
    }
}

#[test]
fn of_equal_scores_the_first_is_taken_and_what_is_not_allowed_is_not_there() {
    let equal = router(4, 2, Order::SoftmaxThenTopK);
    assert!(close(&taken(&equal, &[1.0; 4]), &[(0, 0.25), (1, 0.25)]));
    let two = Router { allowed: Some(vec![1, 3]), ..equal };
    assert!(close(&taken(&two, &[9.0, 1.0, 9.0, 1.0]), &[(1, 0.5), (3, 0.5)]));
}

#[test]
fn padding_is_not_routed_and_its_scores_do_not_matter() {
    let scores = [1.0, 0.0, f32::NAN, f32::NAN, 0.0, 1.0];
    let routes = route(&router(2, 1, Order::SoftmaxThenTopK), &scores, |row| row != 1);
    let routes = routes.expect("the rows routed have numbers");
    assert_eq!(routes.num_rows, 2);
    assert_eq!((routes.ways[0][0].row, routes.ways[1][0].row), (0, 2));
    let all = route(&router(2, 1, Order::SoftmaxThenTopK), &scores, |_| true);
    assert_eq!(all, Err(NotANumber { row: 1, way: 0 }));
    let infinite = route(&router(2, 1, Order::TopKThenSoftmax), &[0.0, f32::INFINITY], |_| true);
    assert_eq!(infinite, Err(NotANumber { row: 0, way: 1 }));
}

#[test]
fn large_scores_do_not_overflow() {
    let found = taken(&router(2, 2, Order::SoftmaxThenTopK), &[1e30, -1e30]);
    assert!(close(&found, &[(0, 1.0), (1, 0.0)]));
}

#[test]
fn ways_to_one_network_are_taken_once_with_their_weights_together() {
    let scores = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), 0.0, 9.0, 0.0, 0.0, 0.0];
    let routes = route(&router(4, 2, Order::SoftmaxThenTopK), &scores, |_| true).expect("numbers");
    let merged = routes.clone().merged(&[1, 0, 0, 1], 2);
    assert_eq!(merged.ways[0].len(), 2);
    assert!((merged.ways[0][0].weight - 0.75).abs() < 1e-6, "1 and 2 of row 0");
    assert_eq!(merged.ways[0][1].row, 1);
    assert_eq!(merged.ways[1][0].row, 1);
    assert_eq!(routes.clone().merged(&[0, 1, 2, 3], 4), routes);
}

fn case() -> impl Strategy<Value = (Vec<f32>, usize, usize)> {
    (1_usize..20).prop_flat_map(|ways| {
        let scores = proptest::collection::vec(-20.0_f32..20.0, ways..=ways * 5);
        (scores, Just(ways), 1..=ways)
    })
}

proptest! {
    #[test]
    fn every_row_takes_k_ways_of_the_largest_scores((scores, ways, k) in case()) {
        for order in [Order::SoftmaxThenTopK, Order::TopKThenSoftmax] {
            let routes = route(&router(ways, k, order), &scores, |_| true).expect("numbers");
            prop_assert_eq!(routes.num_rows, scores.len() / ways);
            for row in 0..routes.num_rows {
                let own: Vec<usize> =
                    (0..ways).filter(|w| routes.ways[*w].iter().any(|t| t.row == row)).collect();
                prop_assert_eq!(own.len(), k);
                let score = |way: usize| scores[row * ways + way];
                let least = own.iter().map(|way| score(*way)).fold(f32::INFINITY, f32::min);
                let left = (0..ways).filter(|way| !own.contains(way));
                prop_assert!(left.map(score).all(|score| score <= least));
            }
        }
    }

    #[test]
    fn renormalizing_is_the_softmax_of_those_taken((scores, ways, k) in case()) {
        let first = Router { renormalize: true, ..router(ways, k, Order::SoftmaxThenTopK) };
        let last = router(ways, k, Order::TopKThenSoftmax);
        let found = |router| route(router, &scores, |_| true).expect("numbers");
        for (a, b) in found(&first).ways.iter().flatten().zip(found(&last).ways.iter().flatten()) {
            prop_assert_eq!((a.row, a.slot), (b.row, b.slot));
            prop_assert!((a.weight - b.weight).abs() < 1e-5);
        }
    }

    #[test]
    fn weights_of_all_ways_add_up_to_one((scores, ways, _) in case()) {
        let routes = route(&router(ways, ways, Order::SoftmaxThenTopK), &scores, |_| true);
        let routes = routes.expect("numbers");
        let mut sums = vec![0.0; routes.num_rows];
        routes.ways.iter().flatten().for_each(|taken| sums[taken.row] += taken.weight);
        prop_assert!(sums.iter().all(|sum| (sum - 1.0_f32).abs() < 1e-5));
    }
}
