//! A request as the inference threads see it, and the other things that they are asked to do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{Span, debug_span};

use super::{
    Observer, RoutedModule, ServeError,
    outputs::Outputs,
    planner::{Chosen, Planner},
    waiting::Rank,
};
use crate::{arch::ModelInput, family::ModuleId, plan::Budget, runtime::Executor};

/// A finished job.
#[derive(Debug)]
pub(super) struct Done {
    /// The outputs.
    pub(super) outputs: Outputs,
    /// The ways that its tokens took.
    pub(super) routed: Vec<RoutedModule>,
    /// What had passed since the arrival when it was queued.
    pub(super) before: Duration,
    /// How long the job waited.
    pub(super) queue: Duration,
    /// How long it ran.
    pub(super) compute: Duration,
    /// The plan that ran.
    pub(super) chosen: Chosen,
}

/// A family as the threads know it; one that is loaded anew gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FamilyKey(pub(super) u64);

/// What an inference thread is asked to do beside answering.
#[derive(Debug)]
pub(super) enum Task {
    /// Take a family over.
    Install { family: FamilyKey, executor: Arc<Executor>, preload: Vec<ModuleId> },
    /// Let go of a family; comes up when none of its requests waits.
    Remove(FamilyKey),
}

/// What an inference thread is asked to run.
#[derive(Debug)]
pub(super) struct Job {
    /// The family that answers.
    pub(super) family: FamilyKey,
    /// Its texts or images, and the tokens of the longest text.
    pub(super) shape: (usize, usize),
    /// What the plan reads, until it does.
    pub(super) input: Option<ModelInput>,
    /// The plan, unless there is no time for it any more.
    pub(super) chosen: Chosen,
    /// The cost of another plan may be this; `None` where nothing depends on time.
    pub(super) budget: Option<Budget>,
    /// Chooses other plans.
    pub(super) planner: Arc<Planner>,
    /// The span of its request.
    pub(super) request: Span,
    /// Its place in the queue, until it runs.
    pub(super) place: Option<Place>,
    /// What had passed since its arrival when it was queued.
    pub(super) before: Duration,
    /// When it was queued.
    pub(super) queued: Instant,
    /// When it is to be done; after its deadline its answer is worth nothing any more.
    pub(super) rank: Rank,
    /// When its batch was expected to be done.
    pub(super) promise: Promise,
    /// Least part of a full batch that it can take.
    pub(super) least: Duration,
    /// Where the answer goes; closed when nobody waits for it.
    pub(super) reply: oneshot::Sender<Result<Done, ServeError>>,
}

impl Job {
    /// Tells whether its latency budget has passed at `now`; without one nothing passes.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        let latency = self.budget.as_ref().and_then(|budget| budget.latency);
        let taken = self.before + now.saturating_duration_since(self.queued);
        latency.is_some_and(|latency| taken >= latency)
    }
}

/// What was expected of a request when it was admitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    pub(super) admitted: Instant,
    /// Time until its batch is done, if everything before it takes the least it can.
    pub(super) least: Duration,
    /// Whether nothing came beside something else lately.
    pub(super) is_alone: bool,
}

impl Promise {
    /// Returns the ratio between the time that it took until `now` and what was expected.
    pub(super) fn ratio(&self, now: Instant) -> f64 {
        let taken = now.saturating_duration_since(self.admitted);
        taken.as_secs_f64() / self.least.as_secs_f64().max(1e-6)
    }
}

/// A job's place in the queue, which is left when this is dropped.
pub(super) struct Place {
    observer: Arc<dyn Observer>,
    family: String,
    _span: Span,
}

impl Place {
    /// Takes a place.
    pub(super) fn take(observer: Arc<dyn Observer>, family: &str) -> Self {
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
