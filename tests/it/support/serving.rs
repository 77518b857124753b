//! Engines that serve families in this process.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tessera::{
    assembly::Family,
    offer::{Profile, QualityRecords},
    pool::Stamps,
    serve::{
        Engine, InferenceThreads, LoadedFamily, Loader, Observer, Registry, Repository,
        ServiceConfig,
    },
    telemetry::Metrics,
};

use super::{computed, fashion_family, runtime, text_family};

/// The text family of the default pool and the small image family as they are served.
struct Served {
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    _thread: InferenceThreads,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let (repository, thread) = start(Registry::default(), metrics.clone(), Box::new(Families));
        repository.load_all(&Families.names().expect("names"));
        Served { repository, metrics, _thread: thread }
    })
}

/// Starts an engine that serves what `registry` offers and `loader` loads.
pub(crate) fn start(
    registry: Registry,
    observer: Arc<dyn Observer>,
    loader: Box<dyn Loader>,
) -> (Arc<Repository>, InferenceThreads) {
    start_with(CONFIG, registry, observer, loader)
}

/// One thread that loads what requests need.
pub(crate) const CONFIG: ServiceConfig = ServiceConfig {
    preload: false,
    num_workers: 1,
    queue_limit: 64,
    max_wait: Duration::from_secs(30),
    latency_margin: 0.05,
};

/// Starts an engine like [`start`], but as `config` says.
pub(crate) fn start_with(
    config: ServiceConfig,
    registry: Registry,
    observer: Arc<dyn Observer>,
    loader: Box<dyn Loader>,
) -> (Arc<Repository>, InferenceThreads) {
    let (engine, thread) = Engine::start(runtime(), config, observer).expect("a thread");
    (Arc::new(Repository::new(Arc::new(registry), engine, loader)), thread)
}

/// Loads the two families.
pub(crate) struct Families;

impl Loader for Families {
    fn names(&self) -> Result<Vec<String>, String> {
        Ok(vec!["fashion".to_owned(), "text".to_owned()])
    }

    fn stamps(&self, _name: &str) -> Option<Stamps> {
        None
    }

    fn load(&self, name: &str) -> Result<LoadedFamily, String> {
        let family = if name == "text" { text_family() } else { fashion_family() };
        let profile = computed(&family);
        loaded(family, profile)
    }
}

/// Returns `family` with the qualities in its folder.
pub(crate) fn loaded(family: Arc<Family>, profile: Profile) -> Result<LoadedFamily, String> {
    let quality = QualityRecords::read(&family.folder.join("quality.json")).expect("read");
    LoadedFamily::new(family, profile, quality, 0.05).map_err(|error| error.to_string())
}

/// Returns the repository that serves them.
pub(crate) fn repository() -> Arc<Repository> {
    served().repository.clone()
}

/// Returns the registry that serves them.
pub(crate) fn registry() -> Arc<Registry> {
    repository().registry().clone()
}

/// Returns the metrics of that registry.
pub(crate) fn metrics() -> Arc<Metrics> {
    served().metrics.clone()
}
