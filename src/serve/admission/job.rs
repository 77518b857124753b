//! A request as the inference threads see it, and their other tasks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{Span, debug_span};

use super::{
    scheduler::{Promise, Work},
    waiting::Rank,
};
use crate::{
    family::ModuleId,
    input::ModelInput,
    plan::{Budget, Plan, Shape},
    runtime::Executor,
    serve::{
        error::ServeError,
        generation::Generator,
        observe::Observer,
        planner::{Chosen, Planner},
        request::RoutedModule,
        workers::{idle::Idle, outputs::Outputs},
    },
};

/// Largest ratio between a batch's tokens with padding and without it.
const MAX_PADDED: f64 = 1.125;

/// Results of a finished job.
#[derive(Debug)]
pub(crate) struct Done {
    /// Outputs of the plan.
    pub(crate) outputs: Outputs,
    /// Experts that the job's tokens took, by module.
    pub(crate) routed: Vec<RoutedModule>,
    /// Time between the request's arrival and its queueing.
    pub(crate) before: Duration,
    /// Time that the job waited in the queue.
    pub(crate) queue: Duration,
    /// Time that the job ran.
    pub(crate) compute: Duration,
    /// Plan that ran.
    pub(crate) chosen: Chosen,
}

/// A family as the threads know it; one that is loaded again gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FamilyKey(pub(crate) u64);

/// Task of an inference thread besides answering.
#[derive(Debug)]
pub(crate) enum Task {
    /// Installation of a family.
    Install { family: FamilyKey, executor: Arc<Executor> },
    /// Work for a family in the time that requests leave: modules to load, and then measurements.
    Ahead { family: FamilyKey, preload: Vec<ModuleId>, idle: Option<Idle> },
    /// Steps of a family's generator, which has sequences.
    Generate(FamilyKey, Arc<Generator>),
    /// Removal of a family, due when none of its requests waits.
    Remove(FamilyKey),
}

/// Request that an inference thread is to run.
#[derive(Debug)]
pub(crate) struct Job {
    /// Family that answers.
    pub(crate) family: FamilyKey,
    /// Number of texts or images, and of tokens of the longest text.
    pub(crate) shape: Shape,
    /// Input of the plan; `None` once the plan has read it.
    pub(crate) input: Option<ModelInput>,
    /// Plan to run, unless there is no longer time for it.
    pub(crate) chosen: Chosen,
    /// Budget that another plan must meet; `None` if no choice depends on time.
    pub(crate) budget: Option<Budget>,
    /// Planner that chooses other plans.
    pub(crate) planner: Arc<Planner>,
    /// Span of the request.
    pub(crate) request: Span,
    /// Place in the queue, until the job runs.
    pub(crate) place: Option<Place>,
    /// Time between the request's arrival and its queueing.
    pub(crate) before: Duration,
    /// Time at which the job was queued.
    pub(crate) queued: Instant,
    /// Priority and deadline; after the deadline the answer is worthless.
    pub(crate) rank: Rank,
    /// Time at which the batch was expected to be done.
    pub(crate) promise: Promise,
    /// Least time of the job as its part of a full batch.
    pub(crate) least: Duration,
    /// Sender of the answer; closed if the client no longer waits.
    pub(crate) reply: oneshot::Sender<Result<Done, ServeError>>,
}

impl Job {
    /// Returns whether the job's latency budget has passed at `now`; false without a budget.
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        let latency = self.budget.as_ref().and_then(|budget| budget.latency);
        let taken = self.before + now.saturating_duration_since(self.queued);
        latency.is_some_and(|latency| taken >= latency)
    }

    /// Returns the plan of a job that may run on no other plan, or `None` if it may.
    fn pinned(&self) -> Option<&Plan> {
        let is_free = self.budget.as_ref().is_some_and(|budget| budget.plan.is_none());
        (!is_free).then_some(&self.chosen.plan)
    }
}

impl Work for Job {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn least(&self) -> Duration {
        self.least
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// The family and the tokens that the plans read must be the same. The batch must not exceed
    /// the largest measured one, and must have little padding. A job that is bound to its plan may
    /// only join jobs of that plan.
    fn joins(&self, members: &[&Self]) -> bool {
        let Some(first) = members.first().filter(|first| first.family == self.family) else {
            return false;
        };
        let all = || members.iter().copied().chain([self]);
        let rows: usize = all().map(|member| member.shape.batch).sum();
        if rows > self.planner.loaded.profile.max_batch() {
            return false;
        }
        let longest = all().map(|member| member.shape.tokens).max().unwrap_or(0);
        let tokens: usize = all().map(|member| member.shape.batch * member.shape.tokens).sum();
        if padded(rows * longest, tokens) > MAX_PADDED {
            return false;
        }
        match (first.pinned(), self.pinned()) {
            (Some(plan), Some(other)) => plan == other,
            (None, None) => {
                self.planner.read_alike(&first.chosen.plan.path, &self.chosen.plan.path)
            }
            _ => false,
        }
    }

    fn promise(&self) -> &Promise {
        &self.promise
    }

    fn has_budget(&self) -> bool {
        self.budget.is_some()
    }
}

#[expect(clippy::cast_precision_loss, reason = "tokens of a batch stay far below 2^53")]
fn padded(run: usize, tokens: usize) -> f64 {
    run as f64 / tokens.max(1) as f64
}

/// Place of a job in the queue; dropping it leaves the queue.
pub(crate) struct Place {
    observer: Arc<dyn Observer>,
    family: String,
    _span: Span,
}

impl Place {
    /// Takes a place in the queue of `family` and reports it to `observer`.
    pub(crate) fn take(observer: Arc<dyn Observer>, family: &str) -> Self {
        observer.queue_changed(family, 1);
        Self { observer, family: family.to_owned(), _span: debug_span!("queue") }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.observer.queue_changed(&self.family, -1);
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Place").field("family", &self.family).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
