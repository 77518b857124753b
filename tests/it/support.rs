//! What the tests share: the pool, one runtime, reference tensors.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use safetensors::{Dtype, SafeTensors};
use tessera::{
    assembly::Family,
    fit::{ProfileOptions, measure_profile},
    input::Encoding,
    offer::{MachineKey, Profile, ProfileCache, QualityRecords},
    pool::Stamps,
    runtime::{Executor, Runtime, RuntimeConfig, find_library},
    serve::{
        Engine, InferenceThreads, LoadedFamily, Loader, Observer, Registry, Repository,
        ServiceConfig,
    },
    telemetry::Metrics,
};

/// Returns the repository's folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the process's runtime.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
            let library = find_library(None, environment.as_deref(), &[root()])
                .expect("`make setup` has fetched ONNX Runtime");
            let config = RuntimeConfig { library, num_threads: 2, spin: false, memory_limit: None };
            Runtime::start(&config).expect("ONNX Runtime starts")
        })
        .clone()
}

/// Returns the default pool's text family.
pub(crate) fn text_family() -> Arc<Family> {
    static FAMILY: OnceLock<Arc<Family>> = OnceLock::new();
    FAMILY
        .get_or_init(|| {
            let folder = root().join("models/text");
            Arc::new(Family::load(&folder).expect("`make setup` has fetched the pool"))
        })
        .clone()
}

/// Returns a small image family of random weights.
pub(crate) fn fashion_family() -> Arc<Family> {
    static FAMILY: OnceLock<Arc<Family>> = OnceLock::new();
    FAMILY
        .get_or_init(|| {
            let folder = root().join("tests/pool/fashion");
            Arc::new(Family::load(&folder).expect("the family is committed"))
        })
        .clone()
}

/// Returns an executor of the text family.
pub(crate) fn text_executor() -> Executor {
    Executor::new(runtime(), text_family())
}

/// The text family of the default pool and the small image family as they are served, with
/// profiles taken here and now.
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
        let (family, profile) = match name {
            "text" => (text_family(), short_profile()),
            _ => (fashion_family(), fashion_profile()),
        };
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

pub(crate) fn fashion_profile() -> Profile {
    static PROFILE: OnceLock<Profile> = OnceLock::new();
    // One run may meet a pause that is longer than all modules take, and its median is that pause.
    PROFILE.get_or_init(|| measured_with(&fashion_family(), 5)).clone()
}

/// Measures the text family's modules quickly and roughly.
pub(crate) fn short_profile() -> Profile {
    static PROFILE: OnceLock<Profile> = OnceLock::new();
    PROFILE.get_or_init(|| measured(&text_family())).clone()
}

pub(crate) fn measured(family: &Arc<Family>) -> Profile {
    measured_with(family, 1)
}

fn measured_with(family: &Arc<Family>, min_runs: usize) -> Profile {
    let cache = measured_cache(family, min_runs);
    cache.profile_of(family).expect("every module was measured")
}

/// Returns the key of the machine that the tests measure.
pub(crate) fn machine_key() -> MachineKey {
    MachineKey { processor: "this one".into(), num_threads: 2, spin: false, runtime: "any".into() }
}

/// Measures the modules of `family`, each at least `min_runs` times.
pub(crate) fn measured_cache(family: &Arc<Family>, min_runs: usize) -> ProfileCache {
    let mut cache = ProfileCache::empty(machine_key());
    let options = ProfileOptions {
        batches: vec![1, 4],
        tokens: vec![8, 64, 256],
        time_per_cell: Duration::from_millis(1),
        min_runs,
    };
    let mut executor = Executor::new(runtime(), family.clone());
    measure_profile(&mut executor, &options, &mut cache, &(), &mut |_| Ok(())).expect("measured");
    cache
}

/// A reference file's tensors.
pub(crate) struct Reference(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Reference {
    /// Reads `tests/references/{name}.safetensors`.
    pub(crate) fn read(name: &str) -> Self {
        Self::open(&root().join("tests/references").join(format!("{name}.safetensors")))
    }

    /// Reads a reference file.
    pub(crate) fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("the reference is there");
        let tensors = SafeTensors::deserialize(&bytes).expect("the reference is valid");
        let read = |view: safetensors::tensor::TensorView<'_>| match view.dtype() {
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))))
                .collect(),
            Dtype::I64 => view
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64)
                .collect(),
            other => panic!("references hold no {other:?}"),
        };
        let tensors = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), read(view))))
            .collect();
        Self(tensors)
    }

    /// Returns the names of its tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns a tensor's shape and values.
    pub(crate) fn tensor(&self, name: &str) -> (&[usize], &[f64]) {
        let (shape, values) =
            self.0.get(name).unwrap_or_else(|| panic!("the reference has no `{name}`"));
        (shape, values)
    }

    /// Returns the reference's token ids and mask.
    pub(crate) fn encoding(&self) -> Encoding {
        let (shape, ids) = self.tensor("input_ids");
        let (_, mask) = self.tensor("attention_mask");
        let integers = |values: &[f64]| values.iter().map(|v| *v as i64).collect();
        Encoding {
            batch: shape[0],
            tokens: shape[1],
            input_ids: integers(ids),
            attention_mask: integers(mask),
        }
    }
}

/// Asserts that `found` is within `tolerance` of `expected`, and says how far it is.
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let largest = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (f64::from(*found) - expected).abs())
        .fold(0.0, f64::max);
    println!("{what}: largest difference {largest:.2e}");
    assert!(largest <= tolerance, "{what}: {largest:.2e} is over {tolerance:.0e}");
}
