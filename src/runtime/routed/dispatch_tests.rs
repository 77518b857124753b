//! Tests of dispatching and combining: each result returns to its own row.

use proptest::prelude::*;

use super::*;
use crate::{
    module::{Order, Router},
    runtime::routed::route::route,
};

fn taken(row: usize, slot: usize, weight: f32) -> Taken {
    Taken { row, slot, weight }
}

/// Returns the values, which must be whole numbers, as integers.
#[expect(clippy::cast_possible_truncation, reason = "the tests' numbers are small and whole")]
fn whole(values: &[f32]) -> Vec<i32> {
    assert!(values.iter().all(|value| value.fract().abs() < f32::EPSILON));
    values.iter().map(|value| *value as i32).collect()
}

#[test]
fn rows_are_gathered_and_added_where_they_come_from() {
    let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let own = [taken(0, 0, 0.5), taken(2, 1, 2.0)];
    assert_eq!(whole(&gather(&rows, 2, &own)), [1, 2, 5, 6]);
    let mut sum = [10.0, 10.0, 20.0, 20.0, 30.0, 30.0];
    combine(&mut sum, 2, &own, &[2.0, 4.0, 1.0, 3.0]);
    assert_eq!(whole(&sum), [11, 12, 20, 20, 32, 36]);
}

#[test]
fn slots_are_placed_and_gathered() {
    let mut slots = [0.0; 8];
    let own = [taken(0, 1, 1.0), taken(1, 0, 1.0)];
    place(&mut slots, 2, 2, &own, &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(whole(&slots), [0, 0, 1, 2, 3, 4, 0, 0]);
    assert_eq!(whole(&gather_slots(&slots, 2, 2, &own)), [1, 2, 3, 4]);
}

proptest! {
    #[test]
    fn dispatching_to_ways_that_change_nothing_is_the_identity(
        rows in proptest::collection::vec(-9.0_f32..9.0, 3 * 7),
        scores in proptest::collection::vec(-5.0_f32..5.0, 5 * 7),
        k in 1_usize..=5,
    ) {
        let router = Router { renormalize: true, ..Router::new(5, k, Order::SoftmaxThenTopK) };
        let routes = route(&router, &scores, |_| true).expect("numbers");
        let mut sum = vec![0.0; rows.len()];
        for taken in &routes.ways {
            let made = gather(&rows, 3, taken);
            combine(&mut sum, 3, taken, &made);
        }
        prop_assert!(sum.iter().zip(&rows).all(|(sum, row)| (sum - row).abs() < 1e-4));
    }
}
