//! The ONNX Runtime session of a module's network.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ort::{
    AsPointer,
    environment::Environment,
    memory::MemoryInfo,
    session::{
        IoBinding, Session, SessionInputValue,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::DynValue,
};
use prost::Message;

use super::{RuntimeError, SideInputs};
use crate::{
    module::{Network, PRESENT_KEYS, PRESENT_VALUES, Port},
    onnx::follow_links,
};

/// Configuration key for the folder of external data of models that are given as bytes.
const FOLDER_KEY: &str = "session.model_external_initializers_file_folder_path";

/// Configuration key and value that disable ONNX Runtime's fused residual and norm. It divides once
/// per element and takes two to five times as long as the separate additions and norm.
const WITHOUT: (&str, &str) =
    ("optimization.disable_specified_optimizers", "SkipLayerNormFusion;BiasSkipLayerNormFusion");

/// Most slabs whose caches stay bound to a session.
const MAX_KEPT: usize = 4;

/// A loaded network of a module.
#[derive(Debug)]
pub(super) struct ModuleSession {
    session: Session,
    module: String,
    ports: Vec<(String, Port)>,
    outputs: Vec<Arc<str>>,
    /// Bindings of the caches of the last steps, the last one first.
    kept: Vec<Kept>,
}

/// Inputs and outputs of a session to which caches are bound; `None` once these are freed.
pub(super) type Binding = Arc<Mutex<Option<IoBinding>>>;

/// Binding that lives no longer than its session.
pub(super) type WeakBinding = Weak<Mutex<Option<IoBinding>>>;

/// Caches that are bound to a session. To bind those of thirty blocks anew takes a tenth of a
/// step's own time.
#[derive(Debug)]
struct Kept {
    /// Addresses of the keys and values. As they are bound, no other value has these addresses.
    caches: Vec<usize>,
    binding: Binding,
}

/// Cache that a module reads and writes where it lies.
pub(super) struct BoundCache<'a> {
    pub(super) keys: &'a mut DynValue,
    pub(super) values: &'a mut DynValue,
    /// Scales of the keys and of the values of an 8-bit cache.
    pub(super) scales: Option<[&'a DynValue; 2]>,
}

impl BoundCache<'_> {
    /// Returns the value for a port of a cache, or `None` if there is none.
    fn value(&self, port: Port) -> Option<&DynValue> {
        match port {
            Port::Keys(_) => Some(&*self.keys),
            Port::Values(_) => Some(&*self.values),
            Port::KeyScales(_) => self.scales.map(|[keys, _]| keys),
            Port::ValueScales(_) => self.scales.map(|[_, values]| values),
            Port::State | Port::Input(_) | Port::Given(_) => None,
        }
    }
}

/// Outputs of a module with their names, in the order in which the module declares them.
pub(super) type Outputs = Vec<(Arc<str>, DynValue)>;

/// Returns the first of `outputs`, which leads on.
pub(super) fn first(outputs: Outputs) -> Result<DynValue, RuntimeError> {
    outputs.into_iter().next().map(|(_, value)| value).ok_or(RuntimeError::NoOutput)
}

impl ModuleSession {
    /// Creates the session of `network`, whose weights lie in files of `folder`.
    pub(super) fn load(
        environment: &Environment,
        folder: &Path,
        module: &str,
        network: &Network,
    ) -> Result<Self, RuntimeError> {
        Self::create(environment, folder, module, network, None)
    }

    /// Creates the session with ONNX Runtime's profiler on, which writes to files whose paths start
    /// with `prefix`.
    pub(super) fn load_profiled(
        environment: &Environment,
        folder: &Path,
        module: &str,
        network: &Network,
        prefix: &Path,
    ) -> Result<Self, RuntimeError> {
        Self::create(environment, folder, module, network, Some(prefix))
    }

    /// Ends profiling and returns the path of the file written.
    pub(super) fn end_profiling(&mut self) -> Result<String, RuntimeError> {
        let wrap = |reason| RuntimeError::Run { module: self.module.clone(), reason };
        self.session.end_profiling().map_err(wrap)
    }

    fn create(
        environment: &Environment,
        folder: &Path,
        module: &str,
        network: &Network,
        profile: Option<&Path>,
    ) -> Result<Self, RuntimeError> {
        let broken = |source| RuntimeError::Network { module: module.into(), source };
        let mut model = network.to_onnx(folder).map_err(broken)?;
        let folder = follow_links(&mut model, folder).map_err(broken)?;
        let wrap = |reason| RuntimeError::Session { module: module.into(), reason };
        let builder = builder(environment, &folder, module).map_err(wrap)?;
        let mut builder = match profile {
            Some(prefix) => profiled(builder, prefix).map_err(wrap)?,
            None => builder,
        };
        let session = builder.commit_from_memory(&model.encode_to_vec()).map_err(wrap)?;
        let ports = network.ports(module)?;
        let outputs = session.outputs().iter().map(|output| output.name().into()).collect();
        Ok(Self { session, module: module.into(), ports, outputs, kept: Vec::new() })
    }

    /// Runs the module. Its ports say which inputs are taken from `given`, from `state` and from
    /// `sides`.
    pub(super) fn run(
        &mut self,
        given: &[(&str, &DynValue)],
        state: Option<&DynValue>,
        sides: &SideInputs,
    ) -> Result<Outputs, RuntimeError> {
        let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> =
            Vec::with_capacity(self.ports.len());
        for (name, port) in &self.ports {
            let value = match port {
                Port::State => state,
                Port::Input(input) => sides.value(input),
                Port::Given(value) => given.iter().find(|(known, _)| known == value).map(|v| v.1),
                // A network with a cache runs in steps only.
                Port::Keys(_) | Port::Values(_) | Port::KeyScales(_) | Port::ValueScales(_) => None,
            };
            let value = value.ok_or_else(|| self.missing(name))?;
            values.push((Cow::Borrowed(name), value.into()));
        }
        let wrap = |reason| RuntimeError::Run { module: self.module.clone(), reason };
        let mut outputs = self.session.run(values).map_err(wrap)?;
        let values = self.outputs.iter().map(|name| {
            let value = outputs.remove(&**name).ok_or(RuntimeError::NoOutput)?;
            Ok((name.clone(), value))
        });
        values.collect()
    }

    /// Runs modules that keep caches, on `state` and the values `given` by name. Writes the keys
    /// and values of the new tokens into `caches`, where they lie. These stay bound: `keep` gets a
    /// new binding, which is to be emptied when they are freed.
    pub(super) fn run_cached(
        &mut self,
        given: &[(&str, &DynValue)],
        state: &DynValue,
        caches: &mut [BoundCache<'_>],
        keep: impl FnOnce(&Binding),
    ) -> Result<DynValue, RuntimeError> {
        let kept = self.bound(caches, keep)?;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let binding = kept.as_mut().ok_or(RuntimeError::NoOutput)?;
        let wrap = |reason| RuntimeError::Run { module: self.module.clone(), reason };
        for (name, port) in &self.ports {
            let value = match port {
                Port::Keys(_) | Port::Values(_) => continue,
                Port::State => Some(state),
                Port::KeyScales(index) | Port::ValueScales(index) => {
                    caches.get(*index).and_then(|cache| cache.value(*port))
                }
                Port::Given(port) | Port::Input(port) => {
                    given.iter().find(|(known, _)| known == port).map(|(_, value)| *value)
                }
            };
            let value = value.ok_or_else(|| self.missing(name))?;
            binding.bind_input(name, value).map_err(wrap)?;
        }
        let output = self.outputs.iter().find(|name| !is_cache(name));
        let output = output.cloned().ok_or(RuntimeError::NoOutput)?;
        // Without this, the output would be written where that of the last step lies.
        binding.bind_output_to_device(&*output, &MemoryInfo::default()).map_err(wrap)?;
        let module = &self.module;
        let wrap = |reason| RuntimeError::Run { module: module.clone(), reason };
        let mut outputs = self.session.run_binding(binding).map_err(wrap)?;
        outputs.remove(&*output).ok_or(RuntimeError::NoOutput)
    }

    /// Returns inputs and outputs to which `caches` are bound, as they were or anew.
    fn bound(
        &mut self,
        caches: &mut [BoundCache<'_>],
        keep: impl FnOnce(&Binding),
    ) -> Result<Binding, RuntimeError> {
        let tensors = caches.iter().flat_map(|cache| [&*cache.keys, &*cache.values]);
        let addresses: Vec<usize> = tensors.map(|tensor| tensor.ptr().addr()).collect();
        self.kept
            .retain(|kept| kept.binding.lock().unwrap_or_else(PoisonError::into_inner).is_some());
        if let Some(place) = self.kept.iter().position(|kept| kept.caches == addresses) {
            self.kept[..=place].rotate_right(1);
            return Ok(self.kept[0].binding.clone());
        }
        let binding = Arc::new(Mutex::new(Some(self.bind(caches)?)));
        keep(&binding);
        self.kept.truncate(MAX_KEPT - 1);
        self.kept.insert(0, Kept { caches: addresses, binding: binding.clone() });
        Ok(binding)
    }

    /// Binds `caches`, as inputs and as outputs.
    fn bind(&self, caches: &mut [BoundCache<'_>]) -> Result<IoBinding, RuntimeError> {
        let wrap = |reason| RuntimeError::Run { module: self.module.clone(), reason };
        let mut binding = self.session.create_binding().map_err(wrap)?;
        for (name, port) in &self.ports {
            if let Port::Keys(index) | Port::Values(index) = port {
                let cache = caches.get(*index).and_then(|cache| cache.value(*port));
                let value = cache.ok_or_else(|| self.missing(name))?;
                binding.bind_input(name, value).map_err(wrap)?;
            }
        }
        // Caches stand in the same order among inputs and outputs.
        let mut presents = self.outputs.iter().filter(|name| is_cache(name));
        for cache in caches {
            for tensor in [&mut *cache.keys, &mut *cache.values] {
                let name = presents.next().ok_or(RuntimeError::NoOutput)?;
                binding.bind_output(&**name, tensor).map_err(wrap)?;
            }
        }
        Ok(binding)
    }

    fn missing(&self, input: &str) -> RuntimeError {
        RuntimeError::NoInput { module: self.module.clone(), input: input.to_owned() }
    }
}

/// Returns whether `output` is the cache of a module, before whose name a chain puts its position.
fn is_cache(output: &str) -> bool {
    matches!(output.rsplit('/').next(), Some(PRESENT_KEYS | PRESENT_VALUES))
}

/// Turns the profiler on. The profiler counts all work of the session's threads and fails other
/// sessions that run on them. Therefore the session gets a pool of its own.
fn profiled(builder: SessionBuilder, prefix: &Path) -> ort::Result<SessionBuilder> {
    let alone = builder.with_independent_thread_pool()?.with_intra_threads(1)?;
    Ok(alone.with_profiling(prefix)?)
}

/// Returns a builder of sessions whose weights lie in files of `folder`.
pub(super) fn builder(
    environment: &Environment,
    folder: &Path,
    module: &str,
) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_log_id(module)?
        .with_execution_providers([ort::ep::CPU::default().with_arena_allocator(false).build()])?
        .with_memory_pattern(false)?
        .with_config_entry(WITHOUT.0, WITHOUT.1)?
        .with_config_entry(FOLDER_KEY, folder.to_string_lossy())?)
}
