//! Choice of the jobs that run together and of their plan (SuperServe §4, SlackFit). Larger batches
//! and better plans take more of the remaining time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    job::Job,
    scheduler::StepPlan,
    waiting::{Share, Taken},
};
use crate::{
    plan::{Budget, Shape},
    serve::{
        error::ServeError,
        planner::{Chosen, Question},
    },
};

/// Error for a job that is late at its turn; the queue sets `retry_after`.
const LATE: ServeError = ServeError::Late { retry_after: Duration::ZERO };

/// Jobs that run together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Jobs by rank, the most urgent first.
    pub(crate) jobs: Vec<Job>,
    /// Plan for all jobs, or the error for the first job.
    pub(crate) chosen: Result<Chosen, ServeError>,
}

/// Calls `choose`. If it panics, only the first job fails, so that the others still run.
pub(crate) fn guarded(
    choose: impl FnOnce() -> (usize, Result<Chosen, ServeError>),
) -> (usize, Result<Chosen, ServeError>) {
    catch_unwind(AssertUnwindSafe(choose)).unwrap_or((1, Err(ServeError::Panicked)))
}

/// Chooses the number of jobs of a step to run and their plan. Takes the best quality within a
/// batch's share of the remaining time; of equal qualities, the larger batch. If no plan is within
/// its share, takes the fastest plan for the largest batch still in time. If no batch is in time,
/// the first job is late.
///
/// A job that is the only one runs on the fastest plan until its budget has passed. A prediction is
/// not a reason to keep an idle thread from trying. If no request came shortly before it either,
/// other requests are not the reason for its lateness.
pub(crate) fn choose(step: &StepPlan<Job>) -> (usize, Result<Chosen, ServeError>) {
    let StepPlan { now, ref taken, is_only } = *step;
    let Taken { items: jobs, shares, .. } = taken;
    let first = &jobs[0];
    let left = |size: usize| {
        let share = shares.iter().find(|share| share.size == size);
        share.map_or(Duration::ZERO, |share| share.left)
    };
    if first.budget.is_none() && left(1).is_zero() {
        let waited = now - first.queued;
        return (1, Err(ServeError::DeadlineExceeded { waited }));
    }
    let with_spare = |size: usize, chosen: Chosen| {
        let (shape, budget) = together(&jobs[..size]);
        let question = Question { shape, budget: &budget, now };
        (size, Ok(first.planner.with_spare(chosen, &question)))
    };
    if jobs.len() == 1 && first.chosen.conservative <= shares[0].allowance {
        return with_spare(1, first.chosen.clone().without_elapsed());
    }
    // Other jobs wait behind this one, so an overrun makes more than one job late.
    let reserve = first.planner.correction.reserve(now);
    let choose = |share: &Share, latency: Option<Duration>| {
        let (shape, budget) = together(&jobs[..share.size]);
        let budget = latency.map_or_else(
            || budget.fastest(),
            |latency| Budget { latency: Some(latency), ..budget.clone() },
        );
        let question = Question { shape, budget: &budget, now };
        let chosen = first.planner.choose_alike(&first.chosen, &question);
        chosen.map(|chosen| (share.size, chosen))
    };
    let within = shares
        .iter()
        .filter_map(|share| choose(share, Some(share.allowance.div_f64(reserve))).ok());
    let quality = |chosen: &Chosen| chosen.summary.quality.value;
    // Of equal elements `max_by` returns the last, which is the largest batch.
    let best = within.max_by(|left, right| quality(&left.1).total_cmp(&quality(&right.1)));
    if let Some((size, chosen)) = best {
        return with_spare(size, chosen);
    }
    if first.budget.is_none() {
        return (1, Ok(first.chosen.clone().without_elapsed()));
    }
    let fastest = shares.iter().rev().filter_map(|share| choose(share, None).ok());
    let may_try = is_only && !first.has_expired(now);
    let mut in_time = fastest.filter(|(size, chosen)| {
        may_try || first.planner.with_margin(chosen.conservative) <= left(*size)
    });
    let late = || match is_only && first.promise.is_alone {
        true => ServeError::DeadlineExceeded { waited: now - first.queued },
        false => LATE,
    };
    in_time.next().map_or_else(|| (1, Err(late())), |(size, chosen)| (size, Ok(chosen)))
}

/// Returns the shape of `jobs` together and the budget that meets all of theirs, without a latency.
fn together(jobs: &[Job]) -> (Shape, Budget) {
    let rows = jobs.iter().map(|job| job.shape.batch).sum();
    let tokens = jobs.iter().map(|job| job.shape.tokens).max().unwrap_or(1);
    let first = &jobs[0];
    if first.budget.is_none() {
        // The job's budget was met when its plan was chosen.
        let plan = Some(first.chosen.summary.plan.clone());
        return (Shape::new(rows, tokens), Budget { plan, ..Budget::default() });
    }
    let budgets = || jobs.iter().filter_map(|job| job.budget.as_ref());
    let budget = Budget {
        latency: None,
        memory_bytes: budgets().filter_map(|budget| budget.memory_bytes).min(),
        min_quality: budgets().filter_map(|budget| budget.min_quality).max_by(f64::total_cmp),
        plan: budgets().find_map(|budget| budget.plan.clone()),
    };
    (Shape::new(rows, tokens), budget)
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
