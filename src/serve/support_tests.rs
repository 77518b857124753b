//! Helpers of the tests: families with made-up costs, jobs, and observers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::Span;

use super::{
    DEFAULT_PRIORITY, ErrorCode, FamilyService, InferRequest, LoadedFamily, Observer, Outcome,
    ServeError, ServiceConfig,
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
    input::{ModelInput, Pixels},
    offer::{MachineKey, ModuleProfile, ProfileCache, QualityRecords, module_digest},
    plan::{Budget, Grid, Shape},
    runtime::{Executor, Residency, support_tests::runtime},
    tensor::{Tensor, TensorData},
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

/// Observer that remembers what ran.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Number of rows of each batch.
    pub(super) batches: Mutex<Vec<usize>>,
    /// Modules that ran, with their times.
    pub(super) modules: Mutex<Vec<(String, Duration)>>,
    /// Modules whose latency was learned.
    pub(super) learned: Mutex<Vec<String>>,
    /// Modules whose router failed.
    pub(super) routers: Mutex<Vec<String>>,
    /// Last residency of each family.
    pub(super) residency: Mutex<BTreeMap<String, Residency>>,
    /// Whether the next module whose latency is learned panics.
    panics: AtomicBool,
}

impl Runs {
    /// Returns the numbers of rows of the batches so far.
    pub(super) fn rows(&self) -> Vec<usize> {
        self.batches.lock().expect("no panic").clone()
    }

    /// Returns the number of times that a module's latency was learned.
    pub(super) fn num_learned(&self) -> usize {
        self.learned.lock().expect("no panic").len()
    }

    /// Makes the next module panic whose latency is learned.
    pub(super) fn panic_when_learned(&self) {
        self.panics.store(true, Ordering::Relaxed);
    }

    /// Returns the residency of the images' family that was reported last.
    pub(super) fn residency(&self) -> Residency {
        let known = self.residency.lock().expect("no panic");
        known.get("fashion").copied().unwrap_or_default()
    }
}

impl Observer for Runs {
    fn accepted(&self, _: &str) {}
    fn finished(&self, _: &str, _: &Outcome<'_>) {}

    fn batch_ran(&self, _: &str, rows: usize, _: f64) {
        self.batches.lock().expect("no panic").push(rows);
    }

    fn module_ran(&self, _: &str, module: &str, time: Duration) {
        self.modules.lock().expect("no panic").push((module.to_owned(), time));
    }

    fn module_corrected(&self, _: &str, module: &str, _: f64) {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "as the test wants");
        self.learned.lock().expect("no panic").push(module.to_owned());
    }

    fn router_failed(&self, _: &str, module: &str) {
        self.routers.lock().expect("no panic").push(module.to_owned());
    }

    fn residency_changed(&self, family: &str, residency: &Residency) {
        self.residency.lock().expect("no panic").insert(family.to_owned(), *residency);
    }

    fn queue_changed(&self, _: &str, _: i64) {}
    fn connections_changed(&self, _: &str, _: i64) {}
    fn connection_refused(&self, _: &str) {}
}

/// Returns the family of the default pool's images; a module takes 2 ns for each weight.
pub(super) fn loaded() -> LoadedFamily {
    let quality = folder().join("quality.json");
    loaded_with(QualityRecords::read(&quality).expect("qualities"))
}

/// Plans that [`small`] offers, the cheaper one first.
pub(super) const CHEAP: &str = "s[0..1]";
pub(super) const BEST: &str = "m[0..6]";

/// Returns the same family with two plans, which load and run within milliseconds.
pub(super) fn small() -> LoadedFamily {
    let plans = [(CHEAP.to_owned(), 0.9), (BEST.to_owned(), 0.95)].into();
    // Plans of the other anchors are not measured, and are made too bad to be offered.
    let losses = ["l.stem", "t.stem"].map(|stem| (stem.to_owned(), 9.0)).into();
    let metric = "accuracy".to_owned();
    loaded_with(QualityRecords { metric, plans, losses, ..QualityRecords::default() })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/fashion")
}

fn loaded_with(quality: QualityRecords) -> LoadedFamily {
    let family = Arc::new(Family::load(&folder()).expect("the family is committed"));
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
    LoadedFamily::new(family, profile, quality, 0.05).expect("plans")
}

/// Returns a planner for [`loaded`].
pub(super) fn planner() -> Arc<Planner> {
    Arc::new(Planner::new(loaded(), Weak::new()))
}

/// Returns a planner for the same plans as [`planner`], with qualities up to 1.
pub(super) fn spread_planner() -> Arc<Planner> {
    let mut quality = QualityRecords::read(&folder().join("quality.json")).expect("qualities");
    for value in quality.plans.values_mut() {
        *value = 0.86 + 0.14 * ((*value - 0.86) / 0.0711).clamp(0.0, 1.0).powi(3);
    }
    Arc::new(Planner::new(loaded_with(quality), Weak::new()))
}

/// Returns a planner for [`small`], and the executor that runs its plans.
pub(super) fn running() -> (Arc<Planner>, Arc<Executor>) {
    let loaded = small();
    let executor = Arc::new(Executor::new(runtime(), loaded.family.clone()));
    (Arc::new(Planner::new(loaded, Arc::downgrade(&executor))), executor)
}

/// Returns images of one grey each.
pub(super) fn images(greys: &[f32]) -> ModelInput {
    let values = greys.iter().flat_map(|grey| [*grey; 784]).collect();
    ModelInput::Pixels(Pixels { shape: [1, 28, 28], values })
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
        promise: Promise {
            admitted: now,
            least: need.alone,
            is_alone: true,
            given: Duration::ZERO,
        },
        least: need.least,
        reply,
    };
    (job, receiver)
}

/// Longest wait of a request without a budget.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Returns settings for one thread and four requests.
pub(super) fn config() -> ServiceConfig {
    ServiceConfig {
        preload: false,
        num_workers: 1,
        queue_limit: 4,
        max_wait: MAX_WAIT,
        latency_margin: 0.05,
        shares_prefixes: false,
    }
}

/// Service of images whose one inference thread is the test.
pub(super) fn service() -> (Arc<FamilyService>, Receiver, Arc<Endings>) {
    let (queue, mut receivers) = queue(4, 1);
    let observer = Arc::new(Endings::default());
    let config = config();
    let parts = SharedParts {
        queue,
        config,
        observer: observer.clone(),
        preparing: PreparingThreads::default(),
        reading_grammars: PreparingThreads::default(),
        pulse: Pulse::default(),
    };
    let service = FamilyService::new(planner(), FamilyKey(0), parts, None);
    (Arc::new(service), receivers.pop().expect("one"), observer)
}

/// Returns a request for the scores of an image of this grey, within `budget`.
pub(super) fn request(grey: f32, budget: Budget) -> InferRequest {
    let values = TensorData::F32(vec![grey; 784]);
    let image = Tensor::new(vec![1, 1, 28, 28], values).expect("an image");
    let inputs = vec![("pixel_values".to_owned(), image)];
    InferRequest {
        inputs,
        prompt_name: None,
        budget,
        priority: DEFAULT_PRIORITY,
        arrival: Instant::now(),
    }
}
