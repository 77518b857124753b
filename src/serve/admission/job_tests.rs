//! Tests of which jobs run together.

use super::*;
use crate::serve::support_tests::{Asked, job, planner};

fn asked(rows: usize, latency_ms: Option<u64>) -> Asked {
    let latency = latency_ms.map(Duration::from_millis);
    Asked { rows, tokens: 1, budget: Budget { latency, ..Budget::default() } }
}

#[test]
fn jobs_that_may_take_any_plan_run_together_up_to_the_largest_batch() {
    let (planner, now) = (planner(), Instant::now());
    let (first, _reply) = job(&planner, now, &asked(10, Some(500)));
    let (fits, _reply) = job(&planner, now, &asked(6, Some(9)));
    let (large, _reply) = job(&planner, now, &asked(7, Some(500)));
    assert!(fits.joins(&[&first]), "16 rows were measured");
    assert!(!large.joins(&[&first]), "17 rows were not");
    let other = Job { family: FamilyKey(1), ..fits };
    assert!(!other.joins(&[&first]), "another family");
}

#[test]
fn a_job_that_is_bound_to_its_plan_joins_its_like_only() {
    let (planner, now) = (planner(), Instant::now());
    let named = |plan: &str| {
        let budget = Budget { plan: Some(plan.into()), ..Budget::default() };
        job(&planner, now, &Asked { rows: 1, tokens: 1, budget })
    };
    let (free, _reply) = job(&planner, now, &asked(1, Some(500)));
    let (small, _reply) = named("s[0..6]");
    let (twin, _reply) = named("s[0..6]");
    let (large, _reply) = named("l[0..6]");
    assert!(twin.joins(&[&small]));
    assert!(!large.joins(&[&small]) && !free.joins(&[&small]) && !small.joins(&[&free]));
    // A request without a latency budget was given its plan when it was admitted.
    let (calm, _reply) = job(&planner, now, &asked(1, None));
    assert!(!calm.joins(&[&free]));
}

#[test]
fn a_batch_has_little_padding() {
    let (planner, now) = (planner(), Instant::now());
    let of = |tokens| {
        let (job, reply) = job(&planner, now, &asked(1, Some(500)));
        drop(reply);
        Job { shape: Shape::new(1, tokens), ..job }
    };
    assert!(of(8).joins(&[&of(9)]), "18 places for 17 tokens");
    assert!(!of(2).joins(&[&of(9)]), "18 places for 11 tokens");
}

#[test]
fn a_budget_expires_from_the_arrival_on() {
    let (planner, now) = (planner(), Instant::now());
    let (job, _reply) = job(&planner, now, &asked(1, Some(50)));
    let job = Job { before: Duration::from_millis(20), ..job };
    assert!(!job.has_expired(now + Duration::from_millis(29)));
    assert!(job.has_expired(now + Duration::from_millis(30)));
    assert!(!Job { budget: None, ..job }.has_expired(now + Duration::from_secs(99)));
}
