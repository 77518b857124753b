//! Service of one family.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    PlanSummary, inputs,
    prepare::{Preparation, PreparingThreads, Term},
    pulse::Pulse,
};
use crate::{
    assembly::Family,
    family::{Manifest, ModuleId},
    input::Language,
    plan::{Budget, Shape},
    pool::Stamps,
    serve::{
        admission::{job::FamilyKey, queue::Queue},
        config::ServiceConfig,
        error::ServeError,
        families::statistics::{Counter, Statistics},
        generation::{Constraint, Generator, Grammar, GrammarError, Grammars},
        observe::Observer,
        planner::{Planner, Question},
    },
    tensor::{DataType, TensorSpec, hex},
};

/// Service that answers the requests of one family.
pub struct FamilyService {
    pub(super) planner: Arc<Planner>,
    digest: String,
    pub(super) config: ServiceConfig,
    pub(super) key: FamilyKey,
    pub(super) queue: Queue,
    pub(super) observer: Arc<dyn Observer>,
    counter: Counter,
    pub(super) preparation: Preparation,
    pub(super) pulse: Pulse,
    /// Generator, or `None` if the family does not generate.
    pub(super) generator: Option<Arc<Generator>>,
    /// Grammars over the tokens of the family's language, from the first that is asked for on.
    grammars: OnceLock<Result<Grammars, GrammarError>>,
    /// Threads that read grammars. They have turns of their own: a costly grammar delays no text.
    reading_grammars: PreparingThreads,
}

/// Parts that all families share.
#[derive(Clone)]
pub(crate) struct SharedParts {
    pub(crate) queue: Queue,
    pub(crate) config: ServiceConfig,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) preparing: PreparingThreads,
    pub(crate) reading_grammars: PreparingThreads,
    pub(crate) pulse: Pulse,
}

impl FamilyService {
    pub(crate) fn new(
        planner: Arc<Planner>,
        key: FamilyKey,
        parts: SharedParts,
        generator: Option<Arc<Generator>>,
    ) -> Self {
        let SharedParts { queue, config, observer, preparing, reading_grammars, pulse } = parts;
        let digest = digest(&planner.loaded.family);
        let counter = Counter::default();
        let family = &planner.loaded.family;
        let max_tokens = family.manifest.limits.max_tokens;
        let tokenizer = family.tokenizer(&family.manifest.reference);
        let bytes_read = tokenizer.and_then(|tokenizer| tokenizer.bytes_read());
        let preparation = Preparation::new(preparing, max_tokens, bytes_read);
        Self {
            planner,
            digest,
            config,
            key,
            queue,
            observer,
            counter,
            preparation,
            pulse,
            generator,
            grammars: OnceLock::new(),
            reading_grammars,
        }
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

    /// Returns the language of a family that generates text; `None` for another family.
    pub fn language(&self) -> Option<&Arc<Language>> {
        self.planner.loaded.family.language().filter(|_| self.generator.is_some())
    }

    /// Creates a constraint for each of `num` answers that they keep `grammar`, off the async
    /// threads: a grammar of a few bytes may take long.
    ///
    /// # Errors
    ///
    /// Fails when `grammar` is not valid, or the family has no language.
    pub(super) async fn constraints(
        self: &Arc<Self>,
        grammar: Grammar,
        num: usize,
    ) -> Result<Vec<Constraint>, ServeError> {
        let service = self.clone();
        let work = move |_: &Term| {
            let first = service.constraint(&grammar)?;
            Ok((0..num).map(|_| first.copied()).collect())
        };
        self.reading_grammars.run(None, work).await?.0
    }

    fn constraint(&self, grammar: &Grammar) -> Result<Constraint, ServeError> {
        let name = grammar.key();
        let refuse = |reason: String| ServeError::Input { name: name.to_owned(), reason };
        let language = self.language();
        let language = language.ok_or_else(|| refuse("the model has no vocabulary".into()))?;
        let grammars = self.grammars.get_or_init(|| Grammars::new(&language.coder));
        let grammars = grammars.as_ref().map_err(|error| refuse(error.to_string()))?;
        grammars.constraint(grammar).map_err(|error| refuse(error.to_string()))
    }

    /// Returns the number of token ids of the reference.
    pub(super) fn num_words(&self) -> i64 {
        let family = &self.planner.loaded.family;
        let words = family.vocabulary_size(&family.manifest.reference);
        i64::try_from(words).unwrap_or(i64::MAX)
    }

    /// Returns the width of the last hidden states, or `None` if it is not known.
    fn states_width(&self) -> Option<usize> {
        let graph = &self.planner.loaded.family.graph;
        let head = graph.reference_head(&self.manifest().reference)?;
        graph.spaces()[graph.module(head).from.0].width()
    }

    /// Returns the plans that no other plan beats at this shape, cheapest first.
    pub fn front(&self, shape: Shape) -> Vec<PlanSummary> {
        self.planner.front(shape, Instant::now())
    }

    /// Returns the plan for `budget` at this shape.
    ///
    /// # Errors
    ///
    /// Fails when no plan meets the budget, or the named plan does not exist.
    pub fn choose(&self, shape: Shape, budget: &Budget) -> Result<PlanSummary, ServeError> {
        let question = Question { shape, budget, now: Instant::now() };
        self.planner.plan_for(&question).map(|chosen| chosen.summary)
    }

    /// Returns the observer of requests.
    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Returns the counter of the family's statistics.
    pub(super) fn counter(&self) -> &Counter {
        &self.counter
    }

    /// Learns the time that passed between the end of a batch and that of a request's answer.
    pub(super) fn learn_answering(&self, time: Duration) {
        self.planner.correction.learn_answering(Instant::now(), time);
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
