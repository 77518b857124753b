//! Tests of the size and the plan of batches.

use std::{sync::Arc, time::Instant};

use super::*;
use crate::serve::{
    admission::{
        scheduler::{Candidate, Capacity, Scheduler},
        waiting::Rank,
    },
    planner::Planner,
    support_tests::{Asked, Reply, job, planner},
};

/// Time that is too short for the fastest plan.
const SHORT: Duration = Duration::from_micros(500);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Queues requests for one image each, which arrive at `now` with these latency budgets, and takes
/// a step at `later`.
fn step(
    planner: &Arc<Planner>,
    now: Instant,
    later: Instant,
    latencies: &[Option<u64>],
) -> (StepPlan<Job>, Vec<Reply>) {
    let mut scheduler = Scheduler::new(now, 64, 1);
    let mut replies = Vec::new();
    for latency in latencies {
        let budget = Budget { latency: latency.map(ms), ..Budget::default() };
        let (job, reply) = job(planner, now, &Asked { rows: 1, tokens: 1, budget });
        replies.push(reply);
        let need = crate::serve::admission::waiting::Need::default();
        let rank = Rank { priority: 1, deadline: now + ms(60_000) };
        let candidate = Candidate { rank, need, has_budget: false, is_free: false };
        let (reserved, _) = scheduler.admit(now, candidate).expect("room");
        scheduler.push(now, reserved, job);
    }
    (scheduler.step(later, &Capacity { num_free: 1 }).expect("jobs wait"), replies)
}

#[test]
fn a_choice_that_panics_fails_one() {
    let (size, chosen) = guarded(|| panic!("as the test wants"));
    assert!(size == 1 && matches!(chosen, Err(ServeError::Panicked)));
    let (size, chosen) = guarded(|| (3, Err(LATE)));
    assert!(size == 3 && matches!(chosen, Err(ServeError::Late { .. })));
}

#[test]
fn a_job_with_time_runs_alone_on_its_own_plan() {
    let (planner, now) = (planner(), Instant::now());
    let (plan, _replies) = step(&planner, now, now, &[Some(1_000)]);
    let own = plan.taken.items[0].chosen.clone();
    let (size, chosen) = choose(&plan);
    assert_eq!((size, chosen.expect("a plan").plan), (1, own.plan));
}

#[test]
fn load_makes_batches_larger_before_plans_become_worse() {
    let (planner, now) = (planner(), Instant::now());
    let best = step(&planner, now, now, &[Some(1_000)]).0.taken.items[0].chosen.clone();
    let (plan, _replies) = step(&planner, now, now, &[Some(200); 12]);
    let (size, chosen) = choose(&plan);
    assert_eq!(size, 12);
    assert_eq!(chosen.expect("a plan").plan, best.plan, "200 ms are enough");
    let (plan, _replies) = step(&planner, now, now, &[Some(12); 12]);
    let (size, chosen) = choose(&plan);
    let chosen = chosen.expect("a plan");
    assert_eq!(size, 12);
    assert!(chosen.summary.quality.value < best.summary.quality.value);
    assert!(chosen.conservative <= ms(12), "{chosen:?}");
}

#[test]
fn an_only_job_is_tried_until_its_budget_has_passed() {
    let (planner, now) = (planner(), Instant::now());
    let (plan, _replies) = step(&planner, now, now + ms(10) - SHORT, &[Some(10)]);
    let (size, chosen) = choose(&plan);
    assert_eq!(size, 1);
    let fastest = chosen.expect("the fastest plan is tried").conservative;
    assert!(fastest > SHORT, "it will be late: {fastest:?}");
    let (plan, _replies) = step(&planner, now, now + ms(10), &[Some(10)]);
    let alone = choose(&plan).1;
    assert!(matches!(alone, Err(ServeError::DeadlineExceeded { .. })), "{alone:?}");
}

#[test]
fn a_job_beside_others_is_late_if_no_plan_is_in_time() {
    let (planner, now) = (planner(), Instant::now());
    let (plan, _replies) = step(&planner, now, now + ms(10) - SHORT, &[Some(10), Some(10)]);
    let (size, chosen) = choose(&plan);
    assert!(size == 1 && matches!(chosen, Err(ServeError::Late { .. })), "{size} {chosen:?}");
}

#[test]
fn a_request_without_a_budget_waits_no_longer_than_any() {
    let (planner, now) = (planner(), Instant::now());
    let (plan, _replies) = step(&planner, now, now + ms(1_000), &[None]);
    assert!(choose(&plan).1.is_ok());
    let (plan, _replies) = step(&planner, now, now + ms(30_000), &[None]);
    let late = choose(&plan).1;
    assert!(matches!(late, Err(ServeError::DeadlineExceeded { .. })), "{late:?}");
}
