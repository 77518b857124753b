//! A request's way into the queue: admission, preparation of its inputs, and the choice of a plan
//! for the time that is left.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{Instrument, Span, debug_span};

use super::{
    InferRequest,
    inputs::{self, Inputs},
    service::FamilyService,
};
use crate::{
    input::ModelInput,
    module::INPUT_IDS,
    plan::{Budget, Shape},
    serve::{
        admission::{
            job::{Done, Job, Place},
            queue::{QueueError, Reservation},
            scheduler::{Candidate, Refusal},
            waiting::Rank,
        },
        error::{ErrorCode, ServeError},
        planner::{Chosen, Question},
    },
};

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Queued {
    /// Receiver of the results.
    pub(super) reply: oneshot::Receiver<Result<Done, ServeError>>,
    /// Number of sequences, and of tokens of the longest one.
    pub(super) shape: Shape,
    /// Number of tokens of all sequences without padding; of images if there are no tokens.
    pub(super) total_tokens: usize,
    /// Time to turn texts into tokens, or image files into pixels.
    pub(super) preprocess: Duration,
}

/// Budget, priority and arrival of a request.
#[derive(Debug)]
struct Asked {
    budget: Budget,
    priority: u32,
    /// Time from which the latency budget counts.
    arrival: Instant,
}

/// A request that is ready to be queued.
#[derive(Debug)]
struct Prepared {
    input: ModelInput,
    chosen: Chosen,
    /// Least time of the request as its part of a full batch.
    least: Duration,
    /// Time to turn texts into tokens, or image files into pixels.
    preprocess: Duration,
}

impl FamilyService {
    /// Admits a request, prepares its inputs, chooses a plan and queues it.
    pub(super) async fn enqueue(&self, request: InferRequest) -> Result<Queued, ServeError> {
        let InferRequest { inputs, prompt_name, budget, priority, arrival } = request;
        let mut inputs = Inputs::parse(inputs, self.manifest())?;
        if let Some(name) = prompt_name {
            inputs = inputs.behind(name, &self.planner.loaded.family.prompt_names())?;
        }
        let asked = Asked { budget, priority, arrival };
        let place = self.admit(&inputs, &asked)?;
        let prepared = self.prepare(inputs, &asked, &place).await?;
        let (input, preprocess) = (&prepared.input, prepared.preprocess);
        let (shape, total_tokens) = (input.shape(), input.total_tokens());
        let reply = self.queue(prepared, asked, place)?;
        Ok(Queued { reply, shape, total_tokens, preprocess })
    }

    /// Admits a request before any work is done for it. Uses the least time that texts of its
    /// length are likely to need.
    fn admit(&self, inputs: &Inputs, asked: &Asked) -> Result<Reservation, ServeError> {
        let now = Instant::now();
        self.pulse.beat(now);
        let expected = self.preparation.expect(now, inputs, self.config.num_workers);
        let question = Question { shape: expected.shape, budget: &asked.budget, now };
        let mut need = self.planner.need(&question).unwrap_or_default();
        // Preparing takes the processor from running batches, and precedes the request's own batch.
        need.least += expected.share;
        need.alone += expected.time;
        let in_time = self.rank(asked, now);
        let latest = Rank { priority: asked.priority, deadline: now + self.config.max_wait };
        let candidate = Candidate {
            rank: in_time.unwrap_or(latest),
            need,
            has_budget: in_time.is_some(),
            is_free: asked.budget.plan.is_none(),
        };
        self.queue.admit(candidate).map_err(|error| {
            let is_hopeless = matches!(error, QueueError::Refused(Refusal::Late { .. }))
                && !self.planner.is_feasible(&question);
            // Other requests are not the reason, so a retry does not help.
            let hopeless = is_hopeless.then(|| self.planner.plan_for(&question).err());
            hopeless.flatten().unwrap_or_else(|| refused(error))
        })
    }

    /// Prepares the inputs that plans read, and chooses the plan.
    async fn prepare(
        &self,
        inputs: Inputs,
        asked: &Asked,
        place: &Reservation,
    ) -> Result<Prepared, ServeError> {
        let start = Instant::now();
        let family = &self.planner.loaded.family;
        let texts = match &inputs {
            Inputs::Texts(texts) => Some(texts.clone()),
            Inputs::Pictures(_) | Inputs::Ready(_) => None,
        };
        let reference = &self.manifest().reference;
        let deadline = asked.budget.latency.map(|latency| asked.arrival + latency);
        let expected = self.preparation.shape(&inputs);
        let preparing = self.preparation.run(&self.planner, inputs, reference, deadline);
        let prepared = preparing.instrument(debug_span!("preprocess")).await?;
        let Some(mut input) = prepared else {
            return Err(self.too_late(expected, asked, place));
        };
        let question =
            Question { shape: input.shape(), budget: &asked.budget, now: Instant::now() };
        let chosen = self.plan_in_time(&question, asked.arrival, place)?;
        let need = self.planner.need(&question).unwrap_or_default();
        let anchor = family.graph.stem_anchor(&chosen.plan.path).unwrap_or_default();
        let prompt_name = texts.as_ref().and_then(|texts| texts.prompt_name.as_deref());
        if !family.share_tokenizer(anchor, reference, prompt_name) {
            let texts = texts.ok_or_else(|| other_vocabulary(anchor))?;
            let shape = input.shape();
            let again = self.preparation.run(&self.planner, Inputs::Texts(texts), anchor, deadline);
            input = again.await?.ok_or_else(|| self.too_late(shape, asked, place))?;
        }
        Ok(Prepared { input, chosen, least: need.least, preprocess: start.elapsed() })
    }

    /// Returns the error for a request of `shape` whose time has passed before it was prepared.
    fn too_late(&self, shape: Shape, asked: &Asked, place: &Reservation) -> ServeError {
        let now = Instant::now();
        let question = Question { shape, budget: &asked.budget, now };
        let waited = now.saturating_duration_since(asked.arrival);
        let refused = self.plan_in_time(&question, asked.arrival, place).err();
        refused.unwrap_or(ServeError::DeadlineExceeded { waited })
    }

    /// Chooses the plan for the remaining time. If no plan is in time, the reason may be other
    /// requests, or latencies learned beside them. An idle server therefore measures before it
    /// refuses.
    fn plan_in_time(
        &self,
        question: &Question<'_>,
        arrival: Instant,
        place: &Reservation,
    ) -> Result<Chosen, ServeError> {
        let Question { budget, now, .. } = *question;
        let turns = budget.latency.map(|latency| self.turns(now, latency));
        let waited = now.saturating_duration_since(arrival);
        let elapsed = waited + turns.unwrap_or_default();
        let error = match self.planner.plan_in_time(question, elapsed) {
            Ok(chosen) => return Ok(chosen),
            Err(error) if error.code() != ErrorCode::BudgetInfeasible => return Err(error),
            Err(error) => error,
        };
        let is_busy = self.queue.is_busy_beside(place);
        if self.planner.plan_for(question).is_err() {
            let again = (!is_busy).then(|| self.planner.remeasure(question)).flatten();
            return again.ok_or(error);
        }
        // On an idle server the expected delays are a guess; only time that has passed refuses a
        // request.
        let is_time_left = budget.latency.is_some_and(|latency| waited < latency);
        match is_busy {
            false if is_time_left => {
                self.planner.plan_for(&Question { budget: &budget.fastest(), ..*question })
            }
            false if place.promise.is_alone => Err(ServeError::DeadlineExceeded { waited }),
            _ => Err(ServeError::Late { retry_after: self.queue.backlog() }),
        }
    }

    /// Returns the part of a request's `latency` budget that passes on the async threads. It passes
    /// before the request is read and before it is answered. At least half of the budget remains,
    /// so that however slow they are, a request is tried and learned from.
    fn turns(&self, now: Instant, latency: Duration) -> Duration {
        let turns = self.pulse.lag(now) + self.planner.correction.answering(now);
        turns.min(latency / 2)
    }

    /// Returns the rank of a request queued at `queued`, or `None` if it has no latency budget.
    fn rank(&self, asked: &Asked, queued: Instant) -> Option<Rank> {
        let budget = asked.budget.latency?;
        let deadline = asked.arrival + budget - self.turns(queued, budget);
        let deadline = deadline.min(queued + self.config.max_wait);
        Some(Rank { priority: asked.priority, deadline })
    }

    /// Queues a job and returns the receiver of its results.
    fn queue(
        &self,
        Prepared { input, chosen, least, .. }: Prepared,
        asked: Asked,
        place: Reservation,
    ) -> Result<oneshot::Receiver<Result<Done, ServeError>>, ServeError> {
        let (reply, answer) = oneshot::channel();
        let queued = Instant::now();
        let in_time = self.rank(&asked, queued);
        let Asked { budget, priority, arrival } = asked;
        let latest = Rank { priority, deadline: queued + self.config.max_wait };
        let job = Job {
            before: queued - arrival,
            family: self.key,
            shape: input.shape(),
            input: Some(input),
            chosen,
            planner: self.planner.clone(),
            request: Span::current(),
            place: Some(Place::take(self.observer.clone(), self.name())),
            queued,
            rank: in_time.unwrap_or(latest),
            promise: place.promise,
            least,
            budget: in_time.is_some().then_some(budget),
            reply,
        };
        self.queue.push(place, job).map_err(refused)?;
        Ok(answer)
    }
}

fn refused(error: QueueError) -> ServeError {
    match error {
        QueueError::Refused(Refusal::Full { limit, backlog }) => {
            ServeError::QueueFull { limit, retry_after: backlog }
        }
        QueueError::Refused(Refusal::Late { backlog }) => ServeError::Late { retry_after: backlog },
        QueueError::Closed => ServeError::WorkerGone,
    }
}

/// Returns the error for token ids from another vocabulary than that of `anchor`.
fn other_vocabulary(anchor: &str) -> ServeError {
    let reason = format!("anchor `{anchor}` has another vocabulary; give text instead");
    inputs::refuse(INPUT_IDS, &reason)
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
