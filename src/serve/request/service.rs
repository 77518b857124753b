//! Service of one family.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tracing::{Instrument, Span, debug_span};

use super::{
    InferRequest, InferResponse, PlanSummary, Report,
    inputs::{self, Inputs},
    prepare::{Preparing, Ready},
    pulse::Pulse,
};
use crate::{
    assembly::Family,
    family::{Manifest, ModuleId},
    input::ModelInput,
    module::INPUT_IDS,
    plan::{Budget, Shape},
    pool::Stamps,
    serve::{
        admission::{
            job::{Done, FamilyKey, Job, Place},
            queue::{Candidate, Queue, QueueError, Reservation},
            waiting::Rank,
        },
        config::ServiceConfig,
        error::{ErrorCode, ServeError},
        families::statistics::{Counter, Statistics},
        observe::{Observer, Outcome},
        planner::{Chosen, Planner, foresee::Foresight},
    },
    tensor::{DataType, TensorSpec, hex},
};

/// Service that answers the requests of one family.
pub struct FamilyService {
    planner: Arc<Planner>,
    digest: String,
    config: ServiceConfig,
    key: FamilyKey,
    queue: Queue,
    observer: Arc<dyn Observer>,
    counter: Counter,
    foresight: Foresight,
    preparing: Preparing,
    pulse: Pulse,
}

/// Parts that all families share.
#[derive(Clone)]
pub(crate) struct SharedParts {
    pub(crate) queue: Queue,
    pub(crate) config: ServiceConfig,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) preparing: Preparing,
    pub(crate) pulse: Pulse,
}

impl FamilyService {
    pub(crate) fn new(planner: Arc<Planner>, key: FamilyKey, parts: SharedParts) -> Self {
        let SharedParts { queue, config, observer, preparing, pulse } = parts;
        let digest = digest(&planner.loaded.family);
        let counter = Counter::default();
        let foresight = Foresight::new(planner.loaded.family.manifest.limits.max_tokens);
        Self { planner, digest, config, key, queue, observer, counter, foresight, preparing, pulse }
    }

    /// Returns the name under which the family is served.
    pub fn name(&self) -> &str {
        &self.manifest().name
    }

    /// Returns the family's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.planner.loaded.family.manifest
    }

    /// Returns a digest of everything that answers depend on.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the stamps of the family's files from the time of its loading.
    pub fn stamps(&self) -> &Stamps {
        self.planner.loaded.family.stamps()
    }

    /// Returns the statistics since the family was loaded.
    pub fn statistics(&self) -> Statistics {
        self.counter.read()
    }

    /// Returns the specs of the inputs: texts, or token ids with their mask, or images.
    pub fn input_specs(&self) -> Vec<TensorSpec> {
        inputs::specs(self.manifest())
    }

    /// Returns the specs of the outputs, the family's own first.
    pub fn output_specs(&self) -> Vec<TensorSpec> {
        let output = &self.manifest().output;
        let rows: &[Option<usize>] = if output.per_token { &[None, None] } else { &[None] };
        let spec = |name: &String, width| TensorSpec {
            name: name.clone(),
            data_type: DataType::F32,
            shape: rows.iter().copied().chain([width]).collect(),
        };
        let states = output.states.iter().map(|name| spec(name, self.states_width()));
        std::iter::once(spec(&output.name, Some(output.width))).chain(states).collect()
    }

    /// Returns the width of the last hidden states, or `None` if it is not known.
    fn states_width(&self) -> Option<usize> {
        let graph = &self.planner.loaded.family.graph;
        let head = graph.reference_head(&self.manifest().reference)?;
        graph.spaces()[graph.module(head).from.0].width()
    }

    /// Returns the plans that no other plan beats at this shape, cheapest first.
    pub fn front(&self, shape: Shape) -> Vec<PlanSummary> {
        self.planner.front(shape)
    }

    /// Returns the plan for `budget` at this shape.
    ///
    /// # Errors
    ///
    /// Fails when no plan meets the budget, or the named plan does not exist.
    pub fn choose(&self, shape: Shape, budget: &Budget) -> Result<PlanSummary, ServeError> {
        self.planner.plan_for(shape, budget).map(|chosen| chosen.plan)
    }

    /// Answers a request.
    ///
    /// # Errors
    ///
    /// Fails on inputs that are not the family's, budgets that no plan meets and a full queue.
    /// Fails on a request that waited too long, and on modules that fail.
    ///
    /// # Cancel safety
    ///
    /// A request whose future is dropped while it waits costs no compute.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, ServeError> {
        let latency_budget = request.budget.latency;
        let mut ending = Ending { service: self, arrival: request.arrival, is_told: false };
        let result = self.answer(request).await;
        ending.tell(&match &result {
            Ok(response) => Outcome::Answered { report: &response.report, latency_budget },
            Err(error) => Outcome::Failed { code: error.code() },
        });
        result
    }

    async fn answer(&self, request: InferRequest) -> Result<InferResponse, ServeError> {
        let InferRequest { inputs, budget, priority, arrival } = request;
        let inputs = Inputs::parse(inputs, self.manifest())?;
        let asked = Asked { budget, priority, arrival };
        let place = self.admit(&inputs, &asked)?;
        let start = Instant::now();
        let prepared = self.prepare(inputs, &asked, &place).await?;
        let (preprocess, total_tokens) = (start.elapsed(), prepared.input.total_tokens());
        let shape = Shape::new(prepared.input.batch(), prepared.input.tokens());
        let done = self.run(prepared, asked, place).await?;
        let Done { outputs, routed, before, queue, compute, chosen } = done;
        let latency = arrival.elapsed();
        let answering = latency.saturating_sub(before + queue + compute);
        self.planner.correction.learn_answering(Instant::now(), answering);
        let report = Report {
            plan: chosen.plan,
            batch: shape.batch,
            tokens: shape.tokens,
            total_tokens,
            latency,
            preprocess,
            queue,
            compute,
            routed,
        };
        let names = self.output_specs().into_iter().map(|spec| spec.name);
        Ok(InferResponse { outputs: names.zip(outputs).collect(), report })
    }

    /// Admits a request before any work is done for it. Uses the least time that texts of its
    /// length are likely to need.
    fn admit(&self, inputs: &Inputs, asked: &Asked) -> Result<Reservation, ServeError> {
        let shape = match inputs {
            Inputs::Texts(texts) => Shape::new(texts.len(), self.foresight.tokens(texts)),
            Inputs::Pictures(files) => Shape::new(files.len(), 1),
            Inputs::Ready(input) => Shape::new(input.batch(), input.tokens()),
        };
        let now = Instant::now();
        self.pulse.beat(now);
        let mut need = self.planner.need(shape, &asked.budget).unwrap_or_default();
        // Preparing takes the processor from running batches, and precedes the request's own batch.
        let preparing = self.foresight.preparing(now, inputs.num_bytes());
        need.least += self.preparing.share(preparing, self.config.num_workers);
        need.alone += preparing;
        let in_time = self.rank(asked, now);
        let latest = Rank { priority: asked.priority, deadline: now + self.config.max_wait };
        let candidate = Candidate {
            rank: in_time.unwrap_or(latest),
            need,
            has_budget: in_time.is_some(),
            is_free: asked.budget.plan.is_none(),
        };
        self.queue.admit(candidate).map_err(|error| {
            let Asked { budget, .. } = asked;
            let is_hopeless = matches!(error, QueueError::Late { .. })
                && budget.plan.is_none()
                && !self.planner.is_feasible(shape, budget);
            // Other requests are not the reason, so a retry does not help.
            let hopeless = is_hopeless.then(|| self.planner.plan_for(shape, budget).err());
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
        let family = &self.planner.loaded.family;
        let texts = match &inputs {
            Inputs::Texts(texts) => Some(texts.clone()),
            Inputs::Pictures(_) | Inputs::Ready(_) => None,
        };
        let reference = &self.manifest().reference;
        let num_bytes = inputs.num_bytes();
        let ready = self
            .preparing
            .run(&self.planner, inputs, reference)
            .instrument(debug_span!("preprocess"));
        let Ready { input, took } = ready.await?;
        if num_bytes > 0 {
            self.foresight.learn_preparing(Instant::now(), num_bytes, took);
        }
        texts.iter().for_each(|texts| self.foresight.learn(texts, input.tokens()));
        let shape = Shape::new(input.batch(), input.tokens());
        let chosen = self.plan_in_time(shape, asked, place)?;
        let anchor = family.graph.stem_anchor(&chosen.path).unwrap_or_default();
        if family.share_tokenizer(anchor, reference) {
            return Ok(Prepared { input, chosen });
        }
        let texts = texts.ok_or_else(|| other_vocabulary(anchor))?;
        let ready = self.preparing.run(&self.planner, Inputs::Texts(texts), anchor).await?;
        Ok(Prepared { input: ready.input, chosen })
    }

    /// Chooses the plan for the remaining time. If no plan is in time, the reason may be other
    /// requests, or latencies learned beside them. An idle server therefore measures before it
    /// refuses.
    fn plan_in_time(
        &self,
        shape: Shape,
        Asked { budget, arrival, .. }: &Asked,
        place: &Reservation,
    ) -> Result<Chosen, ServeError> {
        let turns = budget.latency.map(|latency| self.turns(Instant::now(), latency));
        let elapsed = arrival.elapsed() + turns.unwrap_or_default();
        let error = match self.planner.plan_in_time(shape, budget, elapsed) {
            Ok(chosen) => return Ok(chosen),
            Err(error) if error.code() != ErrorCode::BudgetInfeasible => return Err(error),
            Err(error) => error,
        };
        let is_busy = self.queue.is_busy_beside(place);
        if self.planner.plan_for(shape, budget).is_err() {
            let again = (!is_busy).then(|| self.planner.remeasure(shape, budget)).flatten();
            return again.ok_or(error);
        }
        // On an idle server the expected delays are a guess; only time that has passed refuses a
        // request.
        let waited = arrival.elapsed();
        let is_time_left = budget.latency.is_some_and(|latency| waited < latency);
        match is_busy {
            false if is_time_left => self.planner.plan_for(shape, &budget.fastest()),
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

    /// Queues a job and waits for its result.
    async fn run(
        &self,
        Prepared { input, chosen }: Prepared,
        asked: Asked,
        place: Reservation,
    ) -> Result<Done, ServeError> {
        let (reply, answer) = oneshot::channel();
        let queued = Instant::now();
        let shape = Shape::new(input.batch(), input.tokens());
        let need = self.planner.need(shape, &asked.budget).unwrap_or_default();
        let in_time = self.rank(&asked, queued);
        let Asked { budget, priority, arrival } = asked;
        let latest = Rank { priority, deadline: queued + self.config.max_wait };
        let job = Job {
            before: queued - arrival,
            family: self.key,
            shape,
            input: Some(input),
            chosen,
            planner: self.planner.clone(),
            request: Span::current(),
            place: Some(Place::take(self.observer.clone(), self.name())),
            queued,
            rank: in_time.unwrap_or(latest),
            promise: place.promise,
            least: need.least,
            budget: in_time.is_some().then_some(budget),
            reply,
        };
        self.queue.push(place, job).map_err(refused)?;
        answer.await.map_err(|_| ServeError::WorkerGone)?
    }
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
}

fn refused(error: QueueError) -> ServeError {
    match error {
        QueueError::Full { limit, backlog } => {
            ServeError::QueueFull { limit, retry_after: backlog }
        }
        QueueError::Late { backlog } => ServeError::Late { retry_after: backlog },
        QueueError::Closed => ServeError::WorkerGone,
    }
}

/// Returns the error for token ids from another vocabulary than that of `anchor`.
fn other_vocabulary(anchor: &str) -> ServeError {
    let reason = format!("anchor `{anchor}` has another vocabulary; give text instead");
    inputs::refuse(INPUT_IDS, &reason)
}

/// Guard that reports a request's outcome to the observer, even if the request's future is dropped.
struct Ending<'a> {
    service: &'a FamilyService,
    arrival: Instant,
    is_told: bool,
}

impl Ending<'_> {
    fn tell(&mut self, outcome: &Outcome<'_>) {
        self.is_told = true;
        match outcome {
            Outcome::Answered { report, .. } => self.service.counter.answered(report),
            Outcome::Failed { .. } => self.service.counter.failed(self.arrival.elapsed()),
        }
        self.service.observer.finished(self.service.name(), outcome);
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(&Outcome::Failed { code: ErrorCode::Cancelled });
        }
    }
}

/// Removes the family from the inference threads, which releases its sessions.
impl Drop for FamilyService {
    fn drop(&mut self) {
        self.queue.remove(self.key);
    }
}

impl std::fmt::Debug for FamilyService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FamilyService").field("name", &self.name()).finish_non_exhaustive()
    }
}

fn digest(family: &Family) -> String {
    let mut hash = Sha256::new();
    for index in 0..family.graph.modules().len() {
        if let Some(fingerprint) = family.fingerprint(ModuleId(index)) {
            hash.update(fingerprint);
        }
    }
    for anchor in family.manifest.anchors.values() {
        anchor.sha256.values().for_each(|sha256| hash.update(sha256));
    }
    let stitches = family.manifest.stitches.iter().map(|stitches| &stitches.sha256);
    stitches
        .chain(family.manifest.exits.iter().map(|exits| &exits.sha256))
        .for_each(|sha256| hash.update(sha256));
    hex(&hash.finalize()[..8])
}
