//! Running paths of one family.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Activation, Routing, Runtime, RuntimeError, SideInputs,
    activations::{self, Profiled},
    ledger::Need,
    needs::{Needs, rows_within},
    residents::{Lease, Reserve},
    routed::{self, Networks},
    session::ModuleSession,
    sessions::{Key, Residency, Weights},
};
use crate::{
    arch::{Company, Compute, Family, Network},
    family::ModuleId,
    plan::Grid,
    tensor::Tensor,
};

/// Fraction of the memory limit, as a divisor, that the activations of one batch may take. Where it
/// is small, so are batches; one of long sequences is no faster than each by itself.
const ACTIVATIONS_SHARE: u64 = 32;

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
    /// What each network's session takes.
    weights: Vec<Weights>,
    needs: Needs,
    extra: HashMap<(String, Vec<u8>), ModuleSession>,
}

/// Memory that is kept free until this is dropped.
#[derive(Debug)]
pub struct Room<'a> {
    _reserve: Reserve<'a>,
}

/// Hears how long each module of a path took.
pub trait ModuleObserver {
    /// Is called after a module ran.
    fn ran(&mut self, module: ModuleId, time: Duration);

    /// Is called after a module ran inside which tokens took ways of their own.
    fn routed(&mut self, _module: ModuleId, _routing: &Routing) {}
}

/// Hears nothing.
impl ModuleObserver for () {
    fn ran(&mut self, _module: ModuleId, _time: Duration) {}
}

impl Executor {
    /// Prepares to run paths of `family`; loads nothing yet.
    pub fn new(runtime: Runtime, family: Arc<Family>) -> Self {
        let id = runtime.residents().join();
        let networks = 0..family.num_networks();
        let weights = networks.map(|index| {
            let network = family.network(index);
            Weights { bytes: network.resident_bytes(), table_bytes: network.table_bytes() }
        });
        let weights: Vec<Weights> = weights.collect();
        let needs = Needs::new(&family, &weights);
        Self { runtime, family, id, weights, needs, extra: HashMap::new() }
    }

    /// Takes note of the bytes of activations that modules need, by batch and tokens, so that
    /// batches keep within the memory limit.
    #[must_use]
    pub fn with_activations(
        mut self,
        measured: impl IntoIterator<Item = (ModuleId, Grid)>,
    ) -> Self {
        measured.into_iter().for_each(|(id, activations)| self.needs.measured(id, activations));
        self
    }

    /// Takes note of the bytes of activations that module `id` needs, by batch and tokens.
    pub fn learn_activations(&mut self, id: ModuleId, activations: Grid) {
        self.needs.measured(id, activations);
    }

    /// Returns how many of `rows` sequences of `tokens` run at once on `path`: all without a memory
    /// limit, else as many as a part of it is enough for, and one in any case.
    pub fn rows_at_once(&self, path: &[ModuleId], (rows, tokens): (usize, usize)) -> usize {
        let Some(limit) = self.runtime.residents().limit() else {
            return rows;
        };
        let row = self.needs.of_path(path, (1, tokens));
        rows_within(rows, row.activations, limit / ACTIVATIONS_SHARE)
    }

    /// Returns the family.
    pub fn family(&self) -> &Arc<Family> {
        &self.family
    }

    /// Returns the runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Returns what is loaded.
    pub fn residency(&self) -> Residency {
        self.runtime.residents().residency(self.id)
    }

    /// Keeps modules from giving way to others once they are loaded.
    pub fn pin(&self, modules: &[ModuleId]) {
        for index in modules.iter().flat_map(|id| self.family.networks_of(*id)) {
            self.runtime.residents().pin(self.key(index));
        }
    }

    /// Returns whether modules may have to give way to others.
    pub fn may_evict(&self) -> bool {
        self.runtime.residents().limit().is_some()
    }

    /// Returns the time by module until it is loaded. Of experts it is the share that one token
    /// wants.
    pub fn load_times(&self) -> Vec<Duration> {
        let wanted = self.weights.iter().enumerate();
        let wanted = wanted.map(|(index, weights)| (self.key(index), weights.bytes));
        let times = self.runtime.residents().load_times(wanted);
        let time = |id: ModuleId| match self.family.compute(id) {
            None => Duration::ZERO,
            Some(Compute::Network(index)) => times[*index],
            Some(Compute::Routed(routed)) => {
                let all: Duration = routed.networks().map(|index| times[*index]).sum();
                let always = times[routed.entry];
                always + all.saturating_sub(always).mul_f64(routed.router.share())
            }
        };
        (0..self.family.graph.modules().len()).map(|index| time(ModuleId(index))).collect()
    }

    /// Loads the modules of `path` that are not loaded yet.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses a module.
    pub fn load(&self, path: &[ModuleId]) -> Result<(), RuntimeError> {
        let _reserve = self.runtime.residents().reserve(self.needs.of_path(path, (0, 1)))?;
        let networks = path.iter().flat_map(|id| self.family.networks_of(*id));
        networks.into_iter().try_for_each(|index| self.lease(index).map(drop))
    }

    /// Loads a module if nothing has to give way to it; tells whether it was.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses it.
    pub fn load_ahead(&self, id: ModuleId) -> Result<bool, RuntimeError> {
        // Experts wait until a token wants them.
        let first = self.family.networks_of(id).first().copied();
        let Some(first) = first.filter(|index| !self.runtime.residents().has(self.key(*index)))
        else {
            return Ok(true);
        };
        let need = self.needs.of_path(&[id], (0, 1));
        let has_room = self.runtime.residents().has_room(need);
        if has_room {
            let _reserve = self.runtime.residents().reserve(need)?;
            self.lease(first)?;
        }
        Ok(has_room)
    }

    /// Runs `path` from the input to the output; returns what its last module gives, the family's
    /// output first.
    ///
    /// # Errors
    ///
    /// Fails when the path is none, a module cannot be loaded or fails.
    pub fn run(
        &self,
        path: &[ModuleId],
        sides: &SideInputs,
        observer: &mut impl ModuleObserver,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        if !self.family.graph.is_path(path) {
            return Err(RuntimeError::NotAPath);
        }
        let reserve = self.reserve(path, sides)?;
        let mut state = None;
        for id in path {
            let start = Instant::now();
            let next = self.compute(*id, state.as_ref(), sides)?;
            observer.ran(*id, start.elapsed());
            if let Some(routing) = next.as_ref().and_then(Activation::routing) {
                observer.routed(*id, routing);
            }
            state = next.or(state);
        }
        let outputs = state.ok_or(RuntimeError::NotAPath)?.to_tensors();
        drop(reserve);
        self.runtime.residents().trim();
        outputs
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
        let reserve = self.reserve(&[id], sides)?;
        let next = self.compute(id, state, sides)?;
        drop(reserve);
        self.runtime.residents().trim();
        Ok(next)
    }

    /// Waits until `bytes` of memory are free, such as for what a request is decoded into, and
    /// keeps them free until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// Fails when they do not fit under the memory limit.
    pub fn reserve_bytes(&self, bytes: u64) -> Result<Room<'_>, RuntimeError> {
        let need = Need { activations: bytes, total: bytes };
        Ok(Room { _reserve: self.runtime.residents().reserve(need)? })
    }

    /// Reserves the memory that `path` needs for `sides`.
    fn reserve(&self, path: &[ModuleId], sides: &SideInputs) -> Result<Reserve<'_>, RuntimeError> {
        let need = match self.runtime.residents().limit() {
            Some(_) => self.needs.of_path(path, sides.shape()),
            None => Need::default(),
        };
        self.runtime.residents().reserve(need)
    }

    /// Runs one module within what was reserved.
    fn compute(
        &self,
        id: ModuleId,
        state: Option<&Activation>,
        sides: &SideInputs,
    ) -> Result<Option<Activation>, RuntimeError> {
        match self.family.compute(id) {
            None => Ok(None),
            Some(Compute::Network(index)) if self.splits(*index, sides) => {
                let parts = (0..sides.num_rows()).map(|row| {
                    let state = state.map(|state| state.row(row)).transpose()?;
                    let next = self.advance(id, state.as_ref(), &sides.row(row)?)?;
                    next.ok_or(RuntimeError::NotAPath)
                });
                Activation::join(&parts.collect::<Result<Vec<_>, _>>()?).map(Some)
            }
            Some(Compute::Network(index)) => {
                let mut lease = self.lease(*index)?;
                let outputs = lease.session()?.run(&[], state.map(Activation::value), sides)?;
                let mut values = outputs.into_iter().map(|(_, value)| value);
                let value = values.next().ok_or(RuntimeError::NotAPath)?;
                let others = values.collect();
                Ok(Some(Activation { others, ..Activation::new(value) }))
            }
            Some(Compute::Routed(routed)) => {
                let module = &self.family.graph.module(id).name;
                let state = state.ok_or(RuntimeError::NotAPath)?;
                routed::run(self, (module, routed), state, sides).map(Some)
            }
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
        if !self.runtime.residents().has_room(Need::default()) {
            self.extra.clear();
        }
        let key = (name.to_owned(), network.fingerprint());
        let session = match self.extra.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let folder = &self.family.folder;
                place.insert(ModuleSession::load(
                    self.runtime.environment(),
                    folder,
                    name,
                    network,
                )?)
            }
        };
        let outputs = session.run(&[], state.map(Activation::value), sides)?;
        let value = outputs.into_iter().next().map(|(_, value)| value);
        Activation::new(value.ok_or(RuntimeError::NotAPath)?).to_tensor()
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
        let Some(compute) = self.family.compute(id) else {
            return Ok(vec![0.0; inputs.len()]);
        };
        let measure = |index: usize, inputs: &[Given<'_>]| {
            let (name, network) = (self.family.network_name(index), self.family.network(index));
            let profiled = Profiled { name, network, folder: &self.family.folder };
            activations::measure(self.runtime.environment(), profiled, inputs)
        };
        let given: Vec<Given<'_>> =
            inputs.iter().map(|(sides, state)| (sides, state.as_ref())).collect();
        match compute {
            Compute::Network(index) => measure(*index, &given),
            Compute::Routed(routed) => {
                // What experts need is taken from the case that one takes all rows.
                let entry = measure(routed.entry, &given)?;
                let rows = routed::all_rows(inputs)?;
                let rows: Vec<Given<'_>> = given
                    .iter()
                    .zip(&rows)
                    .map(|((sides, _), rows)| (*sides, Some(rows)))
                    .collect();
                let way = measure(routed::first_way(routed), &rows)?;
                let held = given.iter().map(|(_, state)| state.map_or(0.0, Activation::num_bytes));
                let held = held.map(|bytes| bytes * routed::HELD);
                let peaks = entry.into_iter().zip(way).zip(held);
                Ok(peaks.map(|((entry, way), held)| entry.max(way + held)).collect())
            }
        }
    }

    /// Returns whether the rows of `sides` run one at a time in the network at `index`.
    fn splits(&self, index: usize, sides: &SideInputs) -> bool {
        self.family.network(index).company() == Company::OneByOne && sides.num_rows() > 1
    }

    /// Returns under which key the session of the network at `index` is kept.
    fn key(&self, index: usize) -> Key {
        Key { executor: self.id, network: index }
    }
}

/// What a network is measured on.
type Given<'a> = (&'a SideInputs, Option<&'a Activation>);

/// Its sessions go with it.
impl Drop for Executor {
    fn drop(&mut self) {
        self.runtime.residents().leave(self.id);
    }
}

impl Networks for Executor {
    fn lease(&self, index: usize) -> Result<Lease<'_>, RuntimeError> {
        let family = &self.family;
        let network = family.network(index);
        let load = || {
            let name = family.network_name(index);
            let start = Instant::now();
            if let Some(path) = family.changed_file(network) {
                return Err(RuntimeError::Changed { module: name.to_owned(), path });
            }
            let session =
                ModuleSession::load(self.runtime.environment(), &family.folder, name, network)?;
            tracing::debug!(module = name, seconds = start.elapsed().as_secs_f64(), "loaded");
            Ok(session)
        };
        self.runtime.residents().lease(self.key(index), self.weights[index], load)
    }

    fn reads(&self, network: usize, name: &str) -> bool {
        self.family.network(network).reads(name)
    }
}
