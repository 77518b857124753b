//! One family as it is served.

use std::{sync::Arc, time::Instant};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tracing::{Instrument, Span, debug_span};

use super::{
    ErrorCode, InferRequest, InferResponse, Observer, Outcome, PlanSummary, Report, ServeError,
    ServiceConfig, Statistics,
    foresee::Foresight,
    inputs::{self, Inputs},
    planner::{Chosen, Planner, Terms},
    prepare::prepare,
    queue::{FamilyKey, Job, Place, Queue, QueueError},
    statistics::Counter,
    waiting::Rank,
    worker::Done,
};
use crate::{
    arch::{Family, INPUT_IDS, ModelInput, Stamps},
    family::{Manifest, ModuleId},
    plan::Budget,
    tensor::{DataType, TensorSpec},
};

/// Answers the requests of one family.
pub struct FamilyService {
    planner: Arc<Planner>,
    digest: String,
    config: ServiceConfig,
    key: FamilyKey,
    queue: Queue,
    observer: Arc<dyn Observer>,
    counter: Counter,
    foresight: Foresight,
}

impl FamilyService {
    pub(super) fn new(
        planner: Arc<Planner>,
        key: FamilyKey,
        queue: Queue,
        config: ServiceConfig,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let digest = digest(&planner.loaded.family);
        let (counter, foresight) = (Counter::default(), Foresight::default());
        Self { planner, digest, config, key, queue, observer, counter, foresight }
    }

    /// Returns the served name.
    pub fn name(&self) -> &str {
        &self.manifest().name
    }

    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.planner.loaded.family.manifest
    }

    /// Returns a digest of everything that answers depend on.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns what the files of its folder were when it was loaded.
    pub fn stamps(&self) -> &Stamps {
        self.planner.loaded.family.stamps()
    }

    /// Returns what it has answered since it was loaded.
    pub fn statistics(&self) -> Statistics {
        self.counter.read()
    }

    /// Returns the inputs: texts, or token ids with their mask.
    pub fn input_specs(&self) -> Vec<TensorSpec> {
        inputs::specs(self.manifest())
    }

    /// Returns the outputs, the family's own first.
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

    /// Returns the extent of the last hidden states.
    fn states_width(&self) -> Option<usize> {
        let graph = &self.planner.loaded.family.graph;
        let head = graph.reference_head(&self.manifest().reference)?;
        graph.spaces()[graph.module(head).from.0].width()
    }

    /// Returns the plans that no other beats at this shape, cheapest first.
    pub fn front(&self, batch: usize, tokens: usize) -> Vec<PlanSummary> {
        self.planner.front(batch, tokens)
    }

    /// Returns the plan that `budget` gets at this shape.
    ///
    /// # Errors
    ///
    /// Fails when no plan meets the budget or the plan asked for does not exist.
    pub fn choose(
        &self,
        batch: usize,
        tokens: usize,
        budget: &Budget,
    ) -> Result<PlanSummary, ServeError> {
        self.planner.plan_for((batch, tokens), budget).map(|chosen| chosen.plan)
    }

    /// Answers a request.
    ///
    /// # Errors
    ///
    /// Fails on inputs that are not the family's, budgets that no plan meets, a full queue, a
    /// request that waited too long, and modules that fail.
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
        let family = &self.planner.loaded.family;
        let inputs = Inputs::parse(inputs, self.manifest())?;
        let texts = match &inputs {
            Inputs::Texts(texts) => Some(texts.clone()),
            Inputs::Pictures(_) | Inputs::Ready(_) => None,
        };
        self.refuse_early(&inputs, (&budget, priority, arrival))?;
        let reference = &self.manifest().reference;
        let start = Instant::now();
        let input =
            prepare(&self.planner, inputs, reference).instrument(debug_span!("preprocess")).await?;
        texts.iter().for_each(|texts| self.foresight.learn(texts, input.tokens()));
        let shape = (input.batch(), input.tokens());
        let elapsed = arrival.elapsed() + self.planner.correction.answering();
        let chosen = self.planner.plan_in_time(shape, &budget, elapsed);
        let chosen = chosen.map_err(|error| self.late_if_busy(error, shape, &budget))?;
        let anchor = family.graph.stem_anchor(&chosen.path).unwrap_or_default();
        let input = if family.share_tokenizer(anchor, reference) {
            input
        } else {
            let texts = texts.ok_or_else(|| other_vocabulary(anchor))?;
            prepare(&self.planner, Inputs::Texts(texts), anchor).await?
        };
        let (preprocess, total_tokens) = (start.elapsed(), input.total_tokens());
        let terms = Terms { shape, budget, arrival };
        let done = self.run(chosen, (terms, priority), input).await?;
        let Done { outputs, routed, before, queue, compute, chosen } = done;
        let latency = arrival.elapsed();
        self.planner.correction.learn_answering(latency.saturating_sub(before + queue + compute));
        let report = Report {
            plan: chosen.plan,
            batch: shape.0,
            tokens: shape.1,
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

    /// Tells that a request is late where others, not its budget, are why no plan is in time.
    fn late_if_busy(
        &self,
        error: ServeError,
        shape: (usize, usize),
        budget: &Budget,
    ) -> ServeError {
        let is_infeasible = error.code() == ErrorCode::BudgetInfeasible;
        let is_late =
            is_infeasible && self.queue.is_busy() && self.planner.plan_for(shape, budget).is_ok();
        if is_late { ServeError::Late { retry_after: self.queue.backlog() } } else { error }
    }

    /// Refuses what would be late even if its texts have fewer tokens than others before anything
    /// is done for it, where others are refused.
    fn refuse_early(
        &self,
        inputs: &Inputs,
        (budget, priority, arrival): (&Budget, u32, Instant),
    ) -> Result<(), ServeError> {
        let shape = match inputs {
            Inputs::Texts(texts) => (texts.len(), self.foresight.tokens(texts)),
            Inputs::Pictures(files) => (files.len(), 1),
            Inputs::Ready(_) => return Ok(()),
        };
        let need = || {
            let terms = Terms { shape, budget: budget.clone(), arrival };
            let chosen = self.planner.plan_for(shape, &budget.fastest()).ok()?;
            let need = self.planner.need(&chosen, &terms);
            Some((self.rank(&terms, priority, Instant::now())?, need))
        };
        self.queue.check_early(need, budget.plan.is_none()).map_err(refused)
    }

    /// Returns when a request queued at `queued` is to be done; `None` where it has no budget.
    fn rank(&self, terms: &Terms, priority: u32, queued: Instant) -> Option<Rank> {
        let deadline = terms.arrival + terms.budget.latency?;
        let answering = self.planner.correction.answering();
        let deadline = deadline.checked_sub(answering).unwrap_or(deadline);
        Some(Rank { priority, deadline: deadline.min(queued + self.config.max_wait) })
    }

    /// Queues a job and waits for it.
    async fn run(
        &self,
        chosen: Chosen,
        (terms, priority): (Terms, u32),
        input: ModelInput,
    ) -> Result<Done, ServeError> {
        let (reply, answer) = oneshot::channel();
        let queued = Instant::now();
        let need = self.planner.need(&chosen, &terms);
        let in_time = self.rank(&terms, priority, queued);
        let latest = Rank { priority, deadline: queued + self.config.max_wait };
        let job = Job {
            before: queued - terms.arrival,
            family: self.key,
            shape: terms.shape,
            input: Some(input),
            chosen,
            planner: self.planner.clone(),
            request: Span::current(),
            place: Some(Place::take(self.observer.clone(), self.name())),
            queued,
            rank: in_time.unwrap_or(latest),
            need,
            terms: in_time.is_some().then_some(terms),
            reply,
        };
        self.queue.push(job).map_err(refused)?;
        answer.await.map_err(|_| ServeError::WorkerGone)?
    }
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

/// Returns the error for token ids that the plan's anchor does not know.
fn other_vocabulary(anchor: &str) -> ServeError {
    let reason = format!("anchor `{anchor}` has another vocabulary; give text instead");
    inputs::refuse(INPUT_IDS, &reason)
}

/// Tells the observer how a request ended, also when its future is dropped.
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

/// When nobody asks it any more, its sessions go.
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
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
