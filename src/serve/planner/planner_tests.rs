//! Tests of the choice of plans.

use super::*;
use crate::serve::{
    ErrorCode,
    support_tests::{Endings, planner},
};

const ONE: Shape = Shape::new(1, 1);

fn within(latency_ms: u64) -> Budget {
    Budget { latency: Some(Duration::from_millis(latency_ms)), ..Budget::default() }
}

#[test]
fn more_time_never_gets_a_worse_plan_and_no_plan_exceeds_its_budget() {
    let (planner, now) = (planner(), Instant::now());
    let mut before = 0.0;
    for latency_ms in [2, 4, 8, 16, 32, 64] {
        let budget = within(latency_ms);
        let Ok(chosen) = planner.plan_for(&Question { shape: ONE, budget: &budget, now }) else {
            assert!(before == 0.0, "{latency_ms} ms are more than before");
            continue;
        };
        assert!(planner.with_margin(chosen.conservative) <= Duration::from_millis(latency_ms));
        assert!(chosen.summary.quality.value >= before, "{latency_ms} ms");
        before = chosen.summary.quality.value;
    }
    assert!(before > 0.9);
}

#[test]
fn time_that_has_passed_is_part_of_what_is_predicted() {
    let (planner, now) = (planner(), Instant::now());
    let elapsed = Duration::from_millis(500);
    let budget = within(1_000);
    let question = Question { shape: ONE, budget: &budget, now };
    let chosen = planner.plan_in_time(&question, elapsed).expect("half a second is left");
    assert_eq!(chosen.summary.predicted_latency, chosen.predicted + elapsed);
    let error = planner.plan_in_time(&question, 2 * elapsed).expect_err("nothing is left");
    assert_eq!(error.code(), ErrorCode::BudgetInfeasible);
    let ServeError::Choose(error) = error else { panic!("it is a choice") };
    let ChooseError::Infeasible(infeasible) = *error else { panic!("it is infeasible") };
    assert_eq!(infeasible.budget.latency, budget.latency, "the whole budget is named");
    assert!(infeasible.cheapest.latency_seconds >= 1.0, "the time that has passed counts");
}

#[test]
fn a_plan_leaves_the_reserve_that_was_learned_if_any_can() {
    let (planner, now) = (planner(), Instant::now());
    let seconds = |chosen: &Chosen| planner.with_margin(chosen.conservative).as_secs_f64();
    let reserve = planner.correction.reserve(now);
    assert!(reserve > 1.0, "nothing has run, so nothing is known of the times");
    let mut num_reserved = 0;
    for tenths in 20..640_u32 {
        let latency = Duration::from_micros(u64::from(tenths) * 100);
        let budget = Budget { latency: Some(latency), ..Budget::default() };
        let question = Question { shape: ONE, budget: &budget, now };
        let Ok(chosen) = planner.plan_in_time(&question, Duration::ZERO) else {
            continue;
        };
        let fastest = planner.plan_for(&Question { budget: &budget.fastest(), ..question });
        let least = seconds(&fastest.expect("a plan is in time")) * reserve;
        if least < latency.as_secs_f64() {
            assert!(seconds(&chosen) * reserve <= latency.as_secs_f64() + 1e-6, "{latency:?}");
            num_reserved += 1;
        }
    }
    assert!(num_reserved > 100, "{num_reserved}");
}

#[test]
fn the_least_time_is_the_part_of_a_full_batch() {
    let (planner, now) = (planner(), Instant::now());
    let budget = within(1);
    let need = planner.need(&Question { shape: ONE, budget: &budget, now }).expect("any latency");
    assert!(need.least < need.alone, "a batch of 16 takes 6 times as long as one image");
    let whole = need.alone + need.batch_extra;
    let share = whole.as_secs_f64() / 16.0;
    assert!((need.least.as_secs_f64() - share).abs() < 1e-3 * share);
    let none = Budget { memory_bytes: Some(1), ..Budget::default() };
    assert!(planner.need(&Question { shape: ONE, budget: &none, now }).is_none());
}

#[test]
fn a_path_that_is_on_no_front_can_be_named() {
    let (planner, now) = (planner(), Instant::now());
    let named = |plan: &str| Budget { plan: Some(plan.into()), ..Budget::default() };
    let budget = named("s[0..1]>m[1..6]");
    let chosen = planner.plan_for(&Question { shape: ONE, budget: &budget, now }).expect("a path");
    assert_eq!(chosen.summary.plan, "s[0..1]>m[1..6]");
    let wrong = named("s[0..99]");
    let error = planner.plan_for(&Question { shape: ONE, budget: &wrong, now });
    assert_eq!(error.expect_err("there is no such block").code(), ErrorCode::NotFound);
}

#[test]
fn a_slow_machine_is_learned_from_batches_alone_and_measured_again_when_stale() {
    let (planner, start) = (planner(), Instant::now());
    let budget = within(9);
    let ask = |now| planner.plan_for(&Question { shape: ONE, budget: &budget, now });
    let fast = ask(start).expect("a plan");
    let time = |id: &ModuleId| {
        let module = planner.loaded.profile.module(*id)?;
        Some((*id, Duration::from_secs_f64(3.0 * module.latency_seconds.at(1, 1))))
    };
    let times: Vec<_> = fast.plan.path.iter().filter_map(time).collect();
    let whole = times.iter().map(|(_, time)| *time).sum();
    let mut now = start;
    for _ in 0..40 {
        now += Duration::from_millis(100);
        let run = Run { shape: ONE, times: &times, whole, is_alone: true, ended: now };
        planner.learn(&run, &Endings::default());
    }
    let slow = ask(now).map(|chosen| chosen.summary.quality.value).unwrap_or_default();
    assert!(slow < fast.summary.quality.value, "three times as slow");
    let tight = within(2);
    let question = |now| Question { shape: ONE, budget: &tight, now };
    if planner.is_feasible(&question(now)) {
        assert!(planner.remeasure(&question(now)).is_none(), "a measurement is fresh");
        let later = now + Duration::from_secs(10);
        assert!(planner.remeasure(&question(later)).is_some(), "it may be wrong by now");
    }
}
