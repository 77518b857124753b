//! The ONNX Runtime session of a module's network.

use std::{borrow::Cow, path::Path, sync::Arc};

use ort::{
    environment::Environment,
    memory::MemoryInfo,
    session::{
        Session, SessionInputValue,
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

/// Name in errors of the input of a cache.
const CACHE: &str = "past_key";

/// A loaded network of a module.
#[derive(Debug)]
pub(super) struct ModuleSession {
    session: Session,
    module: String,
    ports: Vec<(String, Port)>,
    outputs: Vec<Arc<str>>,
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
        Ok(Self { session, module: module.into(), ports, outputs })
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
    /// and values of the new tokens into `caches`, where they lie.
    pub(super) fn run_cached(
        &mut self,
        given: &[(&str, &DynValue)],
        state: &DynValue,
        caches: &mut [BoundCache<'_>],
    ) -> Result<DynValue, RuntimeError> {
        let wrap = |reason| RuntimeError::Run { module: self.module.clone(), reason };
        let lacking = || RuntimeError::NoInput { module: self.module.clone(), input: CACHE.into() };
        let mut binding = self.session.create_binding().map_err(wrap)?;
        for (name, port) in &self.ports {
            match port {
                Port::State => binding.bind_input(name, state),
                Port::Keys(index)
                | Port::Values(index)
                | Port::KeyScales(index)
                | Port::ValueScales(index) => {
                    let cache = caches.get(*index).ok_or_else(lacking)?;
                    let value = cache.value(*port).ok_or_else(|| self.missing(name))?;
                    binding.bind_input(name, value)
                }
                Port::Given(port) | Port::Input(port) => {
                    let found = given.iter().find(|(known, _)| known == port);
                    let (_, value) = found.ok_or_else(|| self.missing(name))?;
                    binding.bind_input(name, *value)
                }
            }
            .map_err(wrap)?;
        }
        // Caches stand in the same order among inputs and outputs.
        let mut presents = self.outputs.iter().filter(|name| is_cache(name));
        for cache in caches {
            for tensor in [&mut *cache.keys, &mut *cache.values] {
                let name = presents.next().ok_or(RuntimeError::NoOutput)?;
                binding.bind_output(&**name, tensor).map_err(wrap)?;
            }
        }
        let output = self.outputs.iter().find(|name| !is_cache(name));
        let output = output.cloned().ok_or(RuntimeError::NoOutput)?;
        binding.bind_output_to_device(&*output, &MemoryInfo::default()).map_err(wrap)?;
        let module = &self.module;
        let wrap = |reason| RuntimeError::Run { module: module.clone(), reason };
        let mut outputs = self.session.run_binding(&binding).map_err(wrap)?;
        outputs.remove(&*output).ok_or(RuntimeError::NoOutput)
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
