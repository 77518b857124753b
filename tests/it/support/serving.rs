//! Engines that serve families in this process.

use std::{sync::Arc, time::Duration};

use axum::Router;
use tessera::{
    api::{ApiConfig, ApiState, router},
    assembly::Family,
    offer::{Profile, QualityRecords},
    pool::Stamps,
    serve::{
        Engine, FamilyService, InferenceThreads, LoadedFamily, Loader, Observer, Registry,
        Repository, ServiceConfig,
    },
    telemetry::Metrics,
};

use super::{
    computed, fashion_family, runtime,
    synthetic::{Rows, Synthetic, WORDS},
};

/// Time after which a wait is a hang; no machine is so slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// Settings of an engine with one thread that loads what requests need.
pub(crate) const CONFIG: ServiceConfig = ServiceConfig {
    preload: false,
    num_workers: 1,
    queue_limit: 64,
    max_wait: PATIENCE,
    latency_margin: 0.05,
    shares_prefixes: false,
};

/// Settings of the routes.
pub(crate) fn api_config() -> ApiConfig {
    ApiConfig { request_timeout: PATIENCE, ..ApiConfig::default() }
}

/// Families that are there already, and their profiles.
pub(crate) struct Families {
    families: Vec<(Arc<Family>, Profile)>,
    /// Files of the synthetic family.
    _files: Option<Synthetic>,
}

impl Families {
    /// Returns two small families of random weights: `fashion` of images and `text` of texts.
    pub(crate) fn small() -> Self {
        let rows = Rows { words: WORDS.len(), positions: 256 };
        let mut families = Self::synthetic(Synthetic::with_rows("text", rows));
        families.families.extend(Self::images().families);
        families
    }

    /// Returns the small family of images.
    pub(crate) fn images() -> Self {
        Self::of(fashion_family())
    }

    /// Returns a synthetic family.
    pub(crate) fn synthetic(files: Synthetic) -> Self {
        Self { _files: Some(files.clone()), ..Self::of(files.load()) }
    }

    /// Returns one family, whose files outlive it.
    pub(crate) fn of(family: Arc<Family>) -> Self {
        let profile = computed(&family);
        Self::with_profile(family, profile)
    }

    /// Returns one family with a profile of its own.
    pub(crate) fn with_profile(family: Arc<Family>, profile: Profile) -> Self {
        Self { families: vec![(family, profile)], _files: None }
    }
}

impl Loader for Families {
    fn names(&self) -> Result<Vec<String>, String> {
        Ok(self.families.iter().map(|(family, _)| family.manifest.name.clone()).collect())
    }

    fn stamps(&self, _name: &str) -> Option<Stamps> {
        None
    }

    fn load(&self, name: &str) -> Result<LoadedFamily, String> {
        let found = self.families.iter().find(|(family, _)| family.manifest.name == name);
        let (family, profile) = found.ok_or("no such family")?.clone();
        let quality = QualityRecords::read(&family.folder.join("quality.json")).expect("read");
        LoadedFamily::new(family, profile, quality, 0.05).map_err(|error| error.to_string())
    }
}

/// Families that an engine of its own serves.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) repository: Arc<Repository>,
    pub(crate) metrics: Arc<Metrics>,
    threads: Arc<InferenceThreads>,
}

impl Served {
    /// Starts an engine that has loaded the families of `loader`.
    pub(crate) fn new(loader: impl Loader + 'static) -> Self {
        Self::offering(Registry::default(), loader).loaded()
    }

    /// Starts an engine that offers what `registry` does and has loaded nothing.
    pub(crate) fn offering(registry: Registry, loader: impl Loader + 'static) -> Self {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let (engine, threads) = Engine::start(runtime(), CONFIG, metrics.clone()).expect("threads");
        let repository = Arc::new(Repository::new(Arc::new(registry), engine, Box::new(loader)));
        Self { repository, metrics, threads: Arc::new(threads) }
    }

    /// Starts an engine that tells `observer` what happens and has loaded the families of `loader`.
    pub(crate) fn observed(
        config: ServiceConfig,
        observer: Arc<dyn Observer>,
        loader: impl Loader + 'static,
    ) -> Self {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let (engine, threads) = Engine::start(runtime(), config, observer).expect("threads");
        let registry = Arc::new(Registry::default());
        let repository = Arc::new(Repository::new(registry, engine, Box::new(loader)));
        Self { repository, metrics, threads: Arc::new(threads) }.loaded()
    }

    fn loaded(self) -> Self {
        self.repository.load_all(&self.repository.names());
        self
    }

    /// Returns the service of the family `name`.
    pub(crate) fn service(&self, name: &str) -> Arc<FamilyService> {
        self.repository.registry().family(name).expect("it is served")
    }

    /// Returns the state of routes, which keeps the engine running.
    pub(crate) fn state(&self) -> ApiState {
        let Self { repository, metrics, threads } = self.clone();
        let render = metrics.clone();
        let render = move || {
            let _running = &threads;
            render.render()
        };
        ApiState::new(repository, metrics, Arc::new(render))
    }

    /// Returns the routes, which keep the engine running.
    pub(crate) fn app(&self) -> Router {
        router(self.state(), &api_config())
    }
}
