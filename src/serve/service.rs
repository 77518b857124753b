//! One family as it is served.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tracing::{Instrument, Span, debug_span};

use super::{
    ErrorCode, InferRequest, InferResponse, Observer, Outcome, PlanSummary, Report, ServeError,
    ServiceConfig, Statistics,
    correction::Correction,
    inputs::{self, Inputs},
    prepare::prepare,
    statistics::Counter,
    worker::{Done, FamilyKey, Job, Queue, QueueError, Work},
};
use crate::{
    arch::{Family, INPUT_IDS, ModelInput, Stamps},
    family::{FamilyError, Manifest, ModuleId, PlanId},
    fit::{self, FitError, Profile, QualityRecords},
    plan::{Budget, ChooseError, PlanEntry, PlanTable},
    tensor::{DataType, TensorSpec},
};

/// When a client that was refused for load may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A family with what is known of its costs and qualities.
#[derive(Debug)]
pub struct LoadedFamily {
    /// The family.
    pub family: Arc<Family>,
    /// What its modules cost on this machine.
    pub profile: Profile,
    /// What its plans are worth.
    pub quality: QualityRecords,
    /// Its plans.
    pub table: PlanTable,
}

impl LoadedFamily {
    /// Computes the plans of `family`; what is predicted is made larger by `margin`.
    ///
    /// # Errors
    ///
    /// Fails when the plans cannot be computed, or none is good enough to be offered.
    pub fn new(
        family: Arc<Family>,
        profile: Profile,
        quality: QualityRecords,
        margin: f64,
    ) -> Result<Self, FitError> {
        let table = fit::plan_table(&family, &profile, &quality, margin)?;
        Ok(Self { family, profile, quality, table })
    }

    /// Returns the modules that its plans use, those of the best plan first.
    pub(super) fn modules(&self) -> Vec<ModuleId> {
        let mut seen = std::collections::HashSet::new();
        let entries = self.table.entries().iter();
        let modules = entries.flat_map(|entry| entry.modules.iter().copied());
        modules.filter(|index| seen.insert(*index)).map(ModuleId).collect()
    }
}

/// Answers the requests of one family.
pub struct FamilyService {
    loaded: LoadedFamily,
    correction: Correction,
    digest: String,
    config: ServiceConfig,
    key: FamilyKey,
    queue: Queue,
    observer: Arc<dyn Observer>,
    counter: Counter,
}

impl FamilyService {
    pub(super) fn new(
        loaded: LoadedFamily,
        key: FamilyKey,
        queue: Queue,
        config: ServiceConfig,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let digest = digest(&loaded.family);
        let (correction, counter) = (Correction::default(), Counter::default());
        Self { loaded, correction, digest, config, key, queue, observer, counter }
    }

    /// Returns the served name.
    pub fn name(&self) -> &str {
        &self.manifest().name
    }

    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.loaded.family.manifest
    }

    /// Returns a digest of everything that answers depend on.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns what the files of its folder were when it was loaded.
    pub fn stamps(&self) -> &Stamps {
        self.loaded.family.stamps()
    }

    /// Returns what it has answered since it was loaded.
    pub fn statistics(&self) -> Statistics {
        self.counter.read()
    }

    /// Returns the inputs: texts, or token ids with their mask.
    pub fn input_specs(&self) -> Vec<TensorSpec> {
        inputs::specs(self.manifest())
    }

    /// Returns the output.
    pub fn output_specs(&self) -> Vec<TensorSpec> {
        let output = &self.manifest().output;
        vec![TensorSpec {
            name: output.name.clone(),
            data_type: DataType::F32,
            shape: vec![None, Some(output.width)],
        }]
    }

    /// Returns the plans that no other beats at this shape, cheapest first.
    pub fn front(&self, batch: usize, tokens: usize) -> Vec<PlanSummary> {
        let front = self.loaded.table.front(batch, tokens).into_iter();
        let factor = self.correction.factor();
        front.map(|entry| Self::summary_of(entry, batch, tokens, factor)).collect()
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
        self.plan_for((batch, tokens), budget).map(|chosen| chosen.plan)
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
        let arrival = request.arrival;
        let family = &self.loaded.family;
        let inputs = Inputs::parse(request.inputs, self.manifest())?;
        let texts = match &inputs {
            Inputs::Texts(texts) => Some(texts.clone()),
            Inputs::Pictures(_) | Inputs::Ready(_) => None,
        };
        let reference = &self.manifest().reference;
        let start = Instant::now();
        let input =
            prepare(family, inputs, reference).instrument(debug_span!("preprocess")).await?;
        let shape = (input.batch(), input.tokens());
        let elapsed = arrival.elapsed();
        let Chosen { plan, path, profiled } = self.plan_in_time(shape, &request.budget, elapsed)?;
        let anchor = family.graph.stem_anchor(&path).unwrap_or_default();
        let input = if family.share_tokenizer(anchor, reference) {
            input
        } else {
            let texts = texts.ok_or_else(|| other_vocabulary(anchor))?;
            prepare(family, Inputs::Texts(texts), anchor).await?
        };
        let (preprocess, total_tokens) = (start.elapsed(), input.total_tokens());
        let done = self.run(path, input).await?;
        if !done.has_loaded {
            self.correction.learn(profiled, done.compute);
        }
        let report = Report {
            plan,
            batch: shape.0,
            tokens: shape.1,
            total_tokens,
            latency: arrival.elapsed(),
            preprocess,
            queue: done.queue,
            compute: done.compute,
        };
        let output_name = self.manifest().output.name.clone();
        Ok(InferResponse { output_name, output: done.output, report })
    }

    /// Queues a job and waits for it.
    async fn run(&self, path: Vec<ModuleId>, input: ModelInput) -> Result<Done, ServeError> {
        let (reply, answer) = oneshot::channel();
        let queued = Instant::now();
        let job = Job {
            family: self.key,
            work: Work { path, input, max_batch: self.loaded.profile.max_batch() },
            queued,
            request: Span::current(),
            waiting: debug_span!("queue"),
            deadline: queued + self.config.max_wait,
            reply,
        };
        self.observer.queue_changed(self.name(), 1);
        if let Err(error) = self.queue.push(job) {
            self.observer.queue_changed(self.name(), -1);
            return Err(match error {
                QueueError::Full { limit } => {
                    ServeError::QueueFull { limit, retry_after: RETRY_AFTER }
                }
                QueueError::Closed => ServeError::WorkerGone,
            });
        }
        answer.await.map_err(|_| ServeError::WorkerGone)?
    }

    /// Describes a plan at a shape, its latency corrected by `factor`.
    fn summary_of(entry: &PlanEntry, batch: usize, tokens: usize, factor: f64) -> PlanSummary {
        let seconds = entry.latency_seconds_at(batch, tokens) * factor;
        PlanSummary {
            plan: entry.id.clone(),
            predicted_latency: Duration::from_secs_f64(seconds),
            memory_bytes: entry.memory_bytes_at(batch, tokens),
            quality: entry.quality,
        }
    }

    /// Chooses the plan for what is left of `budget` after `elapsed`, which every plan would have
    /// taken as well: predictions and the costs in an error count it in.
    fn plan_in_time(
        &self,
        shape: (usize, usize),
        budget: &Budget,
        elapsed: Duration,
    ) -> Result<Chosen, ServeError> {
        let left = budget.latency.map(|latency| latency.saturating_sub(elapsed));
        match self.plan_for(shape, &Budget { latency: left, ..budget.clone() }) {
            Ok(mut chosen) => {
                chosen.plan.predicted_latency += elapsed;
                Ok(chosen)
            }
            Err(ServeError::Choose(mut error)) => {
                if let ChooseError::Infeasible(infeasible) = &mut *error {
                    infeasible.budget.latency = budget.latency;
                    infeasible.cheapest.latency_seconds += elapsed.as_secs_f64();
                }
                Err(ServeError::Choose(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Chooses the plan for `budget`. A plan asked for by id may be any path of the family, also
    /// one that is on no front.
    fn plan_for(
        &self,
        (batch, tokens): (usize, usize),
        budget: &Budget,
    ) -> Result<Chosen, ServeError> {
        let shape = (batch, tokens);
        let unlisted = budget.plan.as_deref().filter(|id| self.loaded.table.find(id).is_none());
        let Some(id) = unlisted else {
            return self.choose_from(&self.loaded.table, shape, budget);
        };
        let LoadedFamily { family, profile, quality, .. } = &self.loaded;
        let path = PlanId::find_path(&family.graph, id)
            .map_err(|e: FamilyError| ServeError::UnknownPlan { reason: e.to_string() })?;
        let entry = fit::entry(family, profile, quality, &path)
            .map_err(|e| ServeError::UnknownPlan { reason: e.to_string() })?;
        let budget = Budget { plan: Some(entry.id.clone()), ..budget.clone() };
        let table = PlanTable::new(vec![entry], self.config.latency_margin)
            .map_err(|e| ServeError::UnknownPlan { reason: e.to_string() })?;
        self.choose_from(&table, shape, &budget)
    }

    /// Chooses from `table`, whose latencies are profiled ones: the correction is taken out of the
    /// budget that goes in and put into the latencies that come out.
    fn choose_from(
        &self,
        table: &PlanTable,
        (batch, tokens): (usize, usize),
        budget: &Budget,
    ) -> Result<Chosen, ServeError> {
        let factor = self.correction.factor();
        let latency = budget.latency.map(|latency| latency.div_f64(factor));
        let chosen = table.choose(batch, tokens, &Budget { latency, ..budget.clone() });
        let choice = chosen.map_err(|mut error| {
            if let ChooseError::Infeasible(infeasible) = &mut error {
                infeasible.budget.latency = budget.latency;
                infeasible.cheapest.latency_seconds *= factor;
            }
            error
        })?;
        let path = choice.entry.modules.iter().map(|index| ModuleId(*index)).collect();
        let plan = Self::summary_of(choice.entry, batch, tokens, factor);
        let seconds = choice.entry.latency_seconds_at(batch, tokens);
        Ok(Chosen { plan, path, profiled: Duration::from_secs_f64(seconds) })
    }
}

/// What a budget gets.
struct Chosen {
    plan: PlanSummary,
    path: Vec<ModuleId>,
    /// What the plan took when it was profiled.
    profiled: Duration,
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
        if let Some(network) = family.network(ModuleId(index)) {
            hash.update(network.fingerprint());
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
