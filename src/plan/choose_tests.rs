//! Tests of plan tables and of the choice of a plan.

use std::time::Duration;

use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

use super::{
    Budget, ChooseError, Grid, Infeasible, PlanEntry, PlanError, PlanTable, Quality, QualitySource,
    Shape,
};
use crate::plan::ModuleId;

fn entry(id: usize, latency_ms: f64, weight_bytes: u64, quality: f64) -> PlanEntry {
    let grid = |values| Grid::new(vec![1, 8], vec![16], values).expect("the grid is valid");
    PlanEntry {
        id: format!("plan-{id}"),
        plan: vec![ModuleId(id)].into(),
        latency_seconds: grid(vec![latency_ms / 1e3, latency_ms / 2e2]),
        weight_bytes,
        activation_bytes: grid(vec![10.0, 80.0]),
        quality: Quality { value: quality, source: QualitySource::Predicted },
    }
}

fn tables() -> impl Strategy<Value = PlanTable> {
    let costs = (1_u32..40, 0_u64..40, 0_u32..20);
    (proptest::collection::vec(costs, 1..30), 0.0..0.5_f64).prop_map(|(costs, margin)| {
        let entries = costs.into_iter().enumerate().map(|(id, (latency, weights, quality))| {
            entry(id, f64::from(latency), weights, f64::from(quality) / 20.0)
        });
        PlanTable::new(entries.collect(), margin).expect("the table is valid")
    })
}

fn budgets() -> impl Strategy<Value = Budget> {
    let latency = proptest::option::of((1_u64..100).prop_map(Duration::from_millis));
    let memory_bytes = proptest::option::of(0_u64..150);
    let min_quality =
        proptest::option::of((0_u32..21).prop_map(|quality| f64::from(quality) / 20.0));
    let plan = proptest::option::weighted(0.2, (0_usize..30).prop_map(|id| format!("plan-{id}")));
    (latency, memory_bytes, min_quality, plan).prop_map(
        |(latency, memory_bytes, min_quality, plan)| Budget {
            latency,
            memory_bytes,
            min_quality,
            plan,
        },
    )
}

fn meets_latency(entry: &PlanEntry, table: &PlanTable, batch: usize, budget: &Budget) -> bool {
    let latency_seconds = entry.latency_seconds_at(Shape::new(batch, 16)) * (1.0 + table.margin());
    budget.latency.is_none_or(|latency| latency_seconds <= latency.as_secs_f64())
}

fn meets_rest(entry: &PlanEntry, batch: usize, budget: &Budget) -> bool {
    budget.memory_bytes.is_none_or(|memory| entry.memory_bytes_at(Shape::new(batch, 16)) <= memory)
        && budget.min_quality.is_none_or(|quality| entry.quality.value >= quality)
        && budget.plan.as_ref().is_none_or(|plan| *plan == entry.id)
}

fn least_latency<'a>(entries: impl Iterator<Item = &'a PlanEntry>, batch: usize) -> Option<f64> {
    entries.map(|entry| entry.latency_seconds_at(Shape::new(batch, 16))).min_by(f64::total_cmp)
}

fn infeasible(table: &PlanTable, batch: usize, budget: &Budget) -> Infeasible {
    match table.choose(Shape::new(batch, 16), budget).expect_err("no plan meets the budget") {
        ChooseError::Infeasible(infeasible) => *infeasible,
        ChooseError::NotFound { plan, .. } => unreachable!("{plan} exists"),
    }
}

proptest! {
    #[test]
    fn a_chosen_plan_never_exceeds_its_budget(
        table in tables(), budget in budgets(), batch in 1_usize..20,
    ) {
        if let Ok(choice) = table.choose(Shape::new(batch, 16), &budget) {
            prop_assert!(meets_latency(choice.entry, &table, batch, &budget));
            prop_assert!(meets_rest(choice.entry, batch, &budget));
        }
    }

    #[test]
    fn a_refused_budget_is_met_by_no_plan(
        table in tables(), budget in budgets(), batch in 1_usize..20,
    ) {
        if table.choose(Shape::new(batch, 16), &budget).is_err() {
            let met = table.entries().iter().any(|entry| {
                meets_latency(entry, &table, batch, &budget) && meets_rest(entry, batch, &budget)
            });
            prop_assert!(!met);
        }
    }

    #[test]
    fn the_chosen_plan_is_the_best_or_the_fastest_that_fits(
        table in tables(), budget in budgets(), batch in 1_usize..20,
    ) {
        if let Ok(choice) = table.choose(Shape::new(batch, 16), &budget) {
            let mut fitting = table.entries().iter().filter(|entry| {
                meets_latency(entry, &table, batch, &budget) && meets_rest(entry, batch, &budget)
            });
            if budget.latency.is_none() && budget.min_quality.is_some() {
                let least = least_latency(fitting, batch);
                prop_assert_eq!(Some(choice.predicted_latency_seconds), least);
            } else {
                let best = choice.entry.quality.value;
                prop_assert!(fitting.all(|entry| entry.quality.value <= best));
            }
        }
    }

    #[test]
    fn a_larger_budget_never_gets_a_lower_quality(
        table in tables(), latency_ms in 1_u64..100, memory_bytes in 0_u64..150,
        more_ms in 0_u64..100, more_bytes in 0_u64..150,
    ) {
        let budget = |latency_ms, memory_bytes| Budget {
            latency: Some(Duration::from_millis(latency_ms)),
            memory_bytes: Some(memory_bytes),
            ..Budget::default()
        };
        let shape = Shape::new(4, 16);
        if let Ok(small) = table.choose(shape, &budget(latency_ms, memory_bytes)) {
            let large = budget(latency_ms + more_ms, memory_bytes + more_bytes);
            let large = table.choose(shape, &large).expect("more than enough is enough");
            prop_assert!(large.entry.quality.value >= small.entry.quality.value);
        }
    }

    #[test]
    fn an_infeasible_budget_is_answered_with_the_true_cheapest_plan(
        table in tables(), budget in budgets(), batch in 1_usize..20,
    ) {
        let budget = Budget { plan: None, ..budget };
        let choice = table.choose(Shape::new(batch, 16), &budget);
        if let Err(ChooseError::Infeasible(infeasible)) = choice {
            let met = table.entries().iter().filter(|entry| meets_rest(entry, batch, &budget));
            let least = least_latency(met, batch)
                .or_else(|| least_latency(table.entries().iter(), batch));
            prop_assert_eq!(Some(infeasible.cheapest.latency_seconds), least);
            prop_assert_eq!(infeasible.budget, budget);
        }
    }

    #[test]
    fn the_least_latency_budget_of_a_refusal_is_met_by_the_plan_it_names(
        table in tables(), budget in budgets(), batch in 1_usize..20,
    ) {
        let choice = table.choose(Shape::new(batch, 16), &budget);
        if let Err(ChooseError::Infeasible(infeasible)) = choice {
            let latency = Some(infeasible.least_latency_budget());
            let plan = Some(infeasible.cheapest.id);
            let again = Budget { latency, plan, ..Budget::default() };
            prop_assert!(table.choose(Shape::new(batch, 16), &again).is_ok());
        }
    }

    #[test]
    fn the_front_of_a_table_holds_exactly_the_plans_that_no_other_beats(
        table in tables(), batch in 1_usize..20,
    ) {
        let covers = |left: (f64, u64, f64), right: (f64, u64, f64)| {
            left.0 <= right.0 && left.1 <= right.1 && left.2 <= right.2
        };
        let point = |entry: &PlanEntry| {
            let memory = entry.memory_bytes_at(Shape::new(batch, 16));
            (entry.latency_seconds_at(Shape::new(batch, 16)), memory, -entry.quality.value)
        };
        let front: Vec<_> = table.front(Shape::new(batch, 16)).into_iter().map(point).collect();
        let all: Vec<_> = table.entries().iter().map(point).collect();
        for candidate in &all {
            let beaten = all.iter().any(|other| other != candidate && covers(*other, *candidate));
            prop_assert_eq!(front.contains(candidate), !beaten);
        }
        prop_assert!(front.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0] != pair[1]));
    }
}

/// Returns a table of a fast, a balanced and a good plan. They take 10, 20 and 40 ms at batch 1.
fn three_plans() -> PlanTable {
    let entries =
        vec![entry(1, 10.0, 100, 0.6), entry(2, 20.0, 200, 0.8), entry(3, 40.0, 400, 0.9)];
    PlanTable::new(entries, 0.1).expect("the table is valid")
}

#[test]
fn each_kind_of_budget_gets_its_plan() {
    let table = three_plans();
    let latency = |ms| Some(Duration::from_millis(ms));
    let cases = [
        (Budget::default(), "plan-3"),
        (Budget { latency: latency(23), ..Budget::default() }, "plan-2"),
        (Budget { latency: latency(21), ..Budget::default() }, "plan-1"),
        (Budget { memory_bytes: Some(210), ..Budget::default() }, "plan-2"),
        (Budget { min_quality: Some(0.7), ..Budget::default() }, "plan-2"),
        (Budget { min_quality: Some(0.7), latency: latency(60), ..Budget::default() }, "plan-3"),
        (Budget { plan: Some("plan-1".to_owned()), ..Budget::default() }, "plan-1"),
    ];
    for (budget, id) in cases {
        let choice = table.choose(Shape::new(1, 16), &budget).expect("the budget is feasible");
        assert_eq!(choice.entry.id, id, "{budget:?}");
    }
}

#[test]
fn an_infeasible_budget_is_answered_with_what_would_do() {
    let budget = Budget {
        latency: Some(Duration::from_millis(15)),
        min_quality: Some(0.7),
        ..Budget::default()
    };
    let infeasible = infeasible(&three_plans(), 1, &budget);
    assert_eq!(infeasible.cheapest.id, "plan-2");
    assert_eq!(infeasible.least_memory_bytes, 110);
    assert!((infeasible.best_quality - 0.6).abs() < 1e-12);
    assert_eq!(infeasible.least_latency_budget(), Duration::from_micros(22_001));
    assert_eq!(
        infeasible.to_string(),
        "no plan meets the budget of 15.000 ms at quality 0.7 or better; the cheapest plan \
         `plan-2` takes 20.000 ms (+10 % margin) and 210 bytes at quality 0.8000; the best \
         quality is 0.6000, the least memory 110 bytes"
    );
}

#[test]
fn a_named_plan_that_exceeds_the_budget_is_answered_with_its_own_cost() {
    let budget = Budget {
        latency: Some(Duration::from_millis(30)),
        plan: Some("plan-3".to_owned()),
        ..Budget::default()
    };
    assert_eq!(infeasible(&three_plans(), 1, &budget).cheapest.id, "plan-3");
}

#[test]
fn an_unknown_plan_is_answered_with_the_nearest_ids() {
    let ids = ["small", "small>base", "small[0..4]>base[6..12]", "base", "large", "tiny", "mini"];
    let entries = ids
        .iter()
        .enumerate()
        .map(|(index, id)| PlanEntry { id: (*id).to_owned(), ..entry(index, 1.0, 1, 0.5) });
    let table = PlanTable::new(entries.collect(), 0.0).expect("the table is valid");
    let plan = Some("small[0..4]>base[5..12]".to_owned());
    let refused = table.choose(Shape::new(1, 16), &Budget { plan, ..Budget::default() });
    let Err(ChooseError::NotFound { nearest, .. }) = refused else {
        unreachable!("the plan does not exist");
    };
    assert_eq!(nearest.len(), 5);
    assert_eq!(nearest[0], "small[0..4]>base[6..12]");
    assert_eq!(nearest[1..3], ["small", "small>base"]);
}

#[test]
fn malformed_tables_are_refused() {
    let table = |entries, margin| PlanTable::new(entries, margin).expect_err("it is malformed");
    assert_eq!(table(vec![], 0.0), PlanError::EmptyTable);
    let twice = vec![entry(1, 1.0, 1, 0.5), entry(1, 2.0, 2, 0.6)];
    assert_eq!(table(twice, 0.0), PlanError::DuplicatePlan { id: "plan-1".to_owned() });
    for quality in [f64::NAN, -0.1, 1.1] {
        let refused = table(vec![entry(1, 1.0, 1, quality)], 0.0);
        assert!(matches!(refused, PlanError::InvalidQuality { .. }));
    }
    for margin in [f64::NAN, -0.1, f64::INFINITY] {
        let refused = table(vec![entry(1, 1.0, 1, 0.5)], margin);
        assert!(matches!(refused, PlanError::InvalidMargin { .. }));
    }
}
