//! Fuzz tests of what comes from files and requests: grids and budgets (`make fuzz`).

use super::{BudgetParameters, Grid, MAX_PLAN_ID_BYTES};
use crate::tensor::mutate::{are_same, feed};

#[test]
fn grids() {
    let seeds = [
        br#"{"batches":[1,8],"tokens":[16,256],"values":[0.001,0.002,0.003,0.004]}"#.to_vec(),
        br#"{"batches":[1],"tokens":[1],"values":[1e3]}"#.to_vec(),
    ];
    feed(&seeds, |bytes| {
        let Ok(grid) = serde_json::from_slice::<Grid>(&bytes) else { return };
        for (batch, tokens) in [(1, 1), (64, 512), (1 << 20, 1 << 20)] {
            let value = grid.at(batch, tokens);
            assert!(value >= 0.0, "{value} at {batch} × {tokens}");
        }
        let text = serde_json::to_string(&grid).expect("written");
        let again: Grid = serde_json::from_str(&text).expect("as written");
        assert!(are_same(&again, &grid), "{again:?} {grid:?}");
    });
}

#[test]
fn budgets() {
    let seed: Vec<u8> = [5.5_f64, 1e3, 0.9].iter().flat_map(|value| value.to_le_bytes()).collect();
    feed(&[seed], |bytes| {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let number = |index: usize| numbers.get(index).map(|bytes| f64::from_le_bytes(*bytes));
        let parameters = BudgetParameters {
            latency_budget_ms: number(0),
            memory_budget_mb: number(1),
            min_quality: number(2),
            plan: Some(String::from_utf8_lossy(rest).into_owned()),
        };
        if let Ok(budget) = parameters.parse() {
            assert!(budget.latency.is_none_or(|latency| !latency.is_zero()));
            assert!(budget.min_quality.is_none_or(|quality| (0.0..=1.0).contains(&quality)));
            assert!(budget.plan.is_some_and(|plan| plan.len() <= MAX_PLAN_ID_BYTES));
        }
    });
}
