//! Running paths of one family.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use ort::value::{DynValue, Tensor as OrtTensor};

use super::{
    Runtime, RuntimeError, activations,
    residents::{Key, Lease},
    session::ModuleSession,
};
use crate::{
    arch::{ATTENTION_MASK, Encoding, Family, INPUT_IDS, ModelInput, Network, PIXEL_VALUES},
    family::ModuleId,
    tensor::{Tensor, TensorData},
};

/// Owns the sessions of a family and runs paths through them, on as many threads as ask.
///
/// Sessions are created when a module is first needed and shared by all plans; where one runs on
/// another thread, another is created beside it.
#[derive(Debug)]
pub struct Executor {
    runtime: Runtime,
    family: Arc<Family>,
    /// Its name among the process's executors. By network, modules that compute the same share a
    /// session.
    id: u64,
    extra: HashMap<(String, Vec<u8>), ModuleSession>,
}

/// What an executor holds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    /// Loaded modules.
    pub num_modules: u64,
    /// The bytes of their weights.
    pub weight_bytes: u64,
    /// How many times a module was loaded.
    pub num_loads: u64,
    /// How many times a module gave way to another.
    pub num_evictions: u64,
}

/// The inputs that every module of a path may read besides the hidden states.
#[derive(Debug)]
pub struct SideInputs {
    values: Vec<(&'static str, DynValue)>,
}

/// Hidden states between two modules.
#[derive(Debug)]
pub struct Activation(DynValue);

/// Hears how long each module of a path took.
pub trait ModuleObserver {
    /// Is called after a module ran.
    fn ran(&mut self, module: ModuleId, time: Duration);
}

/// Hears nothing.
impl ModuleObserver for () {
    fn ran(&mut self, _module: ModuleId, _time: Duration) {}
}

impl Executor {
    /// Prepares to run paths of `family`; loads nothing yet.
    pub fn new(runtime: Runtime, family: Arc<Family>) -> Self {
        let id = runtime.residents().join();
        Self { runtime, family, id, extra: HashMap::new() }
    }

    /// Returns the family.
    pub fn family(&self) -> &Arc<Family> {
        &self.family
    }

    /// Returns what is loaded.
    pub fn residency(&self) -> Residency {
        self.runtime.residents().residency(self.id)
    }

    /// Keeps modules from giving way to others once they are loaded.
    pub fn pin(&self, modules: &[ModuleId]) {
        for key in modules.iter().filter_map(|id| self.key(*id)) {
            self.runtime.residents().pin(key);
        }
    }

    /// Returns how long it takes by module until it is there; `None` where there is no memory limit
    /// and so nothing that was loaded ever goes.
    pub fn load_times(&self) -> Option<Vec<Duration>> {
        let modules = (0..self.family.graph.modules().len()).map(ModuleId);
        let wanted: Vec<Option<(Key, u64)>> = modules
            .map(|id| Some((self.key(id)?, self.family.network(id)?.weight_bytes())))
            .collect();
        let known: Vec<(Key, u64)> = wanted.iter().flatten().copied().collect();
        let mut times = self.runtime.residents().load_times(&known)?.into_iter();
        let time = |wanted: Option<_>| wanted.and_then(|_| times.next()).unwrap_or_default();
        Some(wanted.into_iter().map(time).collect())
    }

    /// Loads the modules of `path` that are not loaded yet.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses a module.
    pub fn load(&self, path: &[ModuleId]) -> Result<(), RuntimeError> {
        path.iter().try_for_each(|id| self.session(*id).map(drop))
    }

    /// Loads a module if nothing has to give way to it; tells whether it was.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses it.
    pub fn load_ahead(&self, id: ModuleId) -> Result<bool, RuntimeError> {
        if self.key(id).is_none_or(|key| self.runtime.residents().has(key)) {
            return Ok(true);
        }
        let bytes = self.family.network(id).map_or(0, Network::weight_bytes);
        let has_room = self.runtime.residents().has_room(bytes);
        if has_room {
            self.load(&[id])?;
        }
        Ok(has_room)
    }

    /// Runs `path` from the input to the output.
    ///
    /// # Errors
    ///
    /// Fails when the path is none, a module cannot be loaded or fails.
    pub fn run(
        &self,
        path: &[ModuleId],
        sides: &SideInputs,
        observer: &mut impl ModuleObserver,
    ) -> Result<Tensor, RuntimeError> {
        if !self.family.graph.is_path(path) {
            return Err(RuntimeError::NotAPath);
        }
        let mut state = None;
        for id in path {
            let start = Instant::now();
            state = self.step(*id, state, sides)?;
            observer.ran(*id, start.elapsed());
        }
        state.ok_or(RuntimeError::NotAPath)?.to_tensor()
    }

    /// Runs one module on `state`; the identity returns it as it is.
    ///
    /// # Errors
    ///
    /// Fails when the module cannot be loaded or fails.
    pub fn step(
        &self,
        id: ModuleId,
        state: Option<Activation>,
        sides: &SideInputs,
    ) -> Result<Option<Activation>, RuntimeError> {
        let next = self.advance(id, state.as_ref(), sides)?;
        Ok(next.or(state))
    }

    /// Runs one module on a state that stays; `None` where the module is the identity.
    ///
    /// # Errors
    ///
    /// Fails when the module cannot be loaded or fails.
    pub fn advance(
        &self,
        id: ModuleId,
        state: Option<&Activation>,
        sides: &SideInputs,
    ) -> Result<Option<Activation>, RuntimeError> {
        let mut lease = self.session(id)?;
        match lease.as_mut().and_then(Lease::session) {
            Some(session) => Ok(Some(Activation(session.run(state.map(|state| &state.0), sides)?))),
            None => Ok(None),
        }
    }

    /// Runs a network that is no module of the family once, for fitting. Its session is kept under
    /// `name` and the network's fingerprint.
    ///
    /// # Errors
    ///
    /// Fails when the network cannot be loaded or fails.
    pub fn run_network(
        &mut self,
        name: &str,
        network: &Network,
        state: Option<&Activation>,
        sides: &SideInputs,
    ) -> Result<Tensor, RuntimeError> {
        let key = (name.to_owned(), network.fingerprint());
        let session = match self.extra.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let folder = &self.family.folder;
                place.insert(ModuleSession::load(&self.runtime, folder, name, network)?)
            }
        };
        Activation(session.run(state.map(|state| &state.0), sides)?).to_tensor()
    }

    /// Returns the bytes of activations that module `id` needs on each of `inputs`, a batch of side
    /// inputs and hidden states; 0 for the identity.
    ///
    /// # Errors
    ///
    /// Fails when the module does not load or run.
    pub fn measure_activations(
        &self,
        id: ModuleId,
        inputs: &[(SideInputs, Option<Activation>)],
    ) -> Result<Vec<f64>, RuntimeError> {
        let Some(network) = self.family.network(id) else {
            return Ok(vec![0.0; inputs.len()]);
        };
        let name = &self.family.graph.module(id).name;
        activations::measure(&self.runtime, &self.family.folder, name, network, inputs)
    }

    /// Returns under which key the session of `id` is kept; `None` for the identity.
    fn key(&self, id: ModuleId) -> Option<Key> {
        self.family.network_index(id).map(|network| Key { executor: self.id, network })
    }

    /// Leases the session of `id`, creating it where it is not there; `None` for the identity.
    fn session(&self, id: ModuleId) -> Result<Option<Lease<'_>>, RuntimeError> {
        let family = &self.family;
        let (Some(key), Some(network)) = (self.key(id), family.network(id)) else {
            return Ok(None);
        };
        let load = || {
            let name = &family.graph.module(id).name;
            let start = Instant::now();
            if let Some(path) = family.changed_file(network) {
                return Err(RuntimeError::Changed { module: name.clone(), path });
            }
            let session = ModuleSession::load(&self.runtime, &family.folder, name, network)?;
            tracing::debug!(module = name, seconds = start.elapsed().as_secs_f64(), "loaded");
            Ok(session)
        };
        self.runtime.residents().lease(key, network.weight_bytes(), load).map(Some)
    }
}

/// Its sessions go with it.
impl Drop for Executor {
    fn drop(&mut self) {
        self.runtime.residents().leave(self.id);
    }
}

impl SideInputs {
    /// Hands a plan's input over.
    ///
    /// # Errors
    ///
    /// Fails when the shapes contradict each other.
    pub fn of_input(input: ModelInput) -> Result<Self, RuntimeError> {
        match input {
            ModelInput::Tokens(encoding) => Self::of_encoding(encoding),
            ModelInput::Pixels(pixels) => {
                let [channels, height, width] = pixels.shape;
                let shape = [pixels.batch(), channels, height, width];
                let value = OrtTensor::from_array((shape, pixels.values))
                    .map_err(|source| RuntimeError::Tensor { source })?;
                Ok(Self { values: vec![(PIXEL_VALUES, value.into_dyn())] })
            }
        }
    }

    /// Hands the token ids and the mask of `encoding` over.
    ///
    /// # Errors
    ///
    /// Fails when the shapes contradict each other.
    pub fn of_encoding(encoding: Encoding) -> Result<Self, RuntimeError> {
        let shape = [encoding.batch, encoding.tokens];
        let value = |values: Vec<i64>| {
            OrtTensor::from_array((shape, values))
                .map(OrtTensor::into_dyn)
                .map_err(|source| RuntimeError::Tensor { source })
        };
        let values = vec![
            (INPUT_IDS, value(encoding.input_ids)?),
            (ATTENTION_MASK, value(encoding.attention_mask)?),
        ];
        Ok(Self { values })
    }

    /// Returns the input called `name`.
    pub(super) fn value(&self, name: &str) -> Option<&DynValue> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl Activation {
    /// Returns the value as ONNX Runtime takes it.
    pub(super) fn value(&self) -> &DynValue {
        &self.0
    }

    /// Returns the bytes that the values take.
    #[expect(clippy::cast_precision_loss, reason = "sizes stay far below 2^53 bytes")]
    pub(super) fn num_bytes(&self) -> f64 {
        let extents = self.0.dtype().tensor_shape();
        extents
            .map_or(0.0, |shape| shape.iter().map(|extent| *extent as f64).product::<f64>() * 4.0)
    }

    /// Copies the values out.
    ///
    /// # Errors
    ///
    /// Fails when they are not f32.
    pub fn to_tensor(&self) -> Result<Tensor, RuntimeError> {
        let wrap = |source| RuntimeError::Tensor { source };
        let (shape, values) = self.0.try_extract_tensor::<f32>().map_err(wrap)?;
        let shape = shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(0)).collect();
        Tensor::new(shape, TensorData::F32(values.to_vec()))
            .map_err(|e| wrap(ort::Error::new(e.to_string())))
    }

    /// Hands `tensor` over as hidden states.
    ///
    /// # Errors
    ///
    /// Fails when it is not f32.
    pub fn of_tensor(tensor: Tensor) -> Result<Self, RuntimeError> {
        let wrap = |source| RuntimeError::Tensor { source };
        let (shape, data) = tensor.into_parts();
        let TensorData::F32(values) = data else {
            return Err(wrap(ort::Error::new("hidden states are f32")));
        };
        let value = OrtTensor::from_array((shape, values)).map_err(wrap)?;
        Ok(Self(value.into_dyn()))
    }
}
