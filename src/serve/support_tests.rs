//! Helpers of the tests: a planner with made-up costs, jobs, and an observer.

use std::{
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::Span;

use super::{
    ErrorCode, FamilyService, LoadedFamily, Observer, Outcome, ServeError, ServiceConfig,
    admission::{
        job::{Done, FamilyKey, Job},
        queue::{Receiver, queue},
        scheduler::Promise,
        waiting::Rank,
    },
    planner::{Planner, Question},
    request::{prepare::PreparingThreads, pulse::Pulse, service::SharedParts},
};
use crate::{
    assembly::Family,
    family::ModuleId,
    offer::{MachineKey, ModuleProfile, ProfileCache, QualityRecords, module_digest},
    plan::{Budget, Grid, Shape},
    runtime::Residency,
};

/// Observer that remembers how requests ended; `None` for an answer.
#[derive(Debug, Default)]
pub(super) struct Endings {
    pub(super) num_accepted: Mutex<usize>,
    pub(super) ended: Mutex<Vec<Option<ErrorCode>>>,
}

impl Observer for Endings {
    fn accepted(&self, _: &str) {
        *self.num_accepted.lock().expect("no panic") += 1;
    }

    fn finished(&self, _: &str, outcome: &Outcome<'_>) {
        let code = match outcome {
            Outcome::Answered { .. } => None,
            Outcome::Failed { code } => Some(*code),
        };
        self.ended.lock().expect("no panic").push(code);
    }

    fn batch_ran(&self, _: &str, _: usize, _: f64) {}
    fn module_ran(&self, _: &str, _: &str, _: Duration) {}
    fn residency_changed(&self, _: &str, _: &Residency) {}
    fn queue_changed(&self, _: &str, _: i64) {}
    fn connections_changed(&self, _: &str, _: i64) {}
    fn connection_refused(&self, _: &str) {}
}

/// Returns the family of the default pool's images; a module takes 2 ns for each weight.
pub(super) fn planner() -> Arc<Planner> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fashion");
    let family = Arc::new(Family::load(&folder).expect("the family is committed"));
    let key = MachineKey {
        processor: "simulated".into(),
        num_threads: 1,
        spin: false,
        runtime: "none".into(),
    };
    let mut cache = ProfileCache::empty(key);
    for id in (0..family.graph.modules().len()).map(ModuleId) {
        let Some(digest) = module_digest(&family, id) else { continue };
        let alone = 5e-5 + 2e-9 * u32::try_from(family.weight_bytes(id)).map_or(0.0, f64::from);
        let grid = |values| Grid::new(vec![1, 16], vec![1], values).expect("a grid");
        let latency_seconds = grid(vec![alone, 6.0 * alone]);
        let module = ModuleProfile { latency_seconds, activation_bytes: grid(vec![1e4, 16e4]) };
        cache.modules.insert(digest, module);
    }
    let profile = cache.profile_of(&family).expect("every module has a cost");
    let quality = QualityRecords::read(&folder.join("quality.json")).expect("qualities");
    let loaded = LoadedFamily::new(family, profile, quality, 0.05).expect("plans");
    Arc::new(Planner::new(loaded, Weak::new()))
}

/// Request of a test.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    /// Number of images.
    pub(super) rows: usize,
    /// Number of tokens of each; 1 for images.
    pub(super) tokens: usize,
    pub(super) budget: Budget,
}

/// Receiver of a job's results.
pub(super) type Reply = oneshot::Receiver<Result<Done, ServeError>>;

/// Returns a job that is queued at `now` with the plan that it would get, and its receiver.
pub(super) fn job(planner: &Arc<Planner>, now: Instant, asked: &Asked) -> (Job, Reply) {
    let Asked { rows, tokens, ref budget } = *asked;
    let shape = Shape::new(rows, tokens);
    let question = Question { shape, budget, now };
    let need = planner.need(&question).expect("a plan meets the budget");
    let chosen = planner.plan_for(&question);
    let chosen =
        chosen.or_else(|_| planner.plan_for(&Question { budget: &budget.fastest(), ..question }));
    let (reply, receiver) = oneshot::channel();
    let job = Job {
        family: FamilyKey(0),
        shape,
        input: None,
        chosen: chosen.expect("a plan"),
        budget: budget.latency.is_some().then(|| budget.clone()),
        planner: planner.clone(),
        request: Span::none(),
        place: None,
        before: Duration::ZERO,
        queued: now,
        rank: Rank { priority: 1, deadline: now + budget.latency.unwrap_or(MAX_WAIT) },
        promise: Promise { admitted: now, least: need.alone, is_alone: true },
        least: need.least,
        reply,
    };
    (job, receiver)
}

/// Longest wait of a request without a budget.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Service of images whose one inference thread is the test.
pub(super) fn service() -> (Arc<FamilyService>, Receiver, Arc<Endings>) {
    let (queue, mut receivers) = queue(4, 1);
    let observer = Arc::new(Endings::default());
    let config = ServiceConfig {
        preload: false,
        num_workers: 1,
        queue_limit: 4,
        max_wait: Duration::from_secs(30),
        latency_margin: 0.05,
    };
    let (preparing, pulse) = (PreparingThreads::default(), Pulse::default());
    let parts = SharedParts { queue, config, observer: observer.clone(), preparing, pulse };
    let service = FamilyService::new(planner(), FamilyKey(0), parts);
    (Arc::new(service), receivers.pop().expect("one"), observer)
}
