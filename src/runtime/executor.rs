//! The executor, which runs paths of one family.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Activation, Routing, Runtime, RuntimeError, SideInputs,
    cache::Caches,
    needs::{Needs, rows_within},
    probe::activations::{self, Profiled},
    residents::{
        Lease, Reserve,
        ledger::Need,
        sessions::{Key, Residency, Weights},
    },
    routed::{self, Networks},
    session::{ModuleSession, Outputs},
};
use crate::{
    assembly::Family,
    family::ModuleId,
    module::{Batching, Compute, TOKEN_SIZES},
    plan::{Grid, Plan, Shape},
    tensor::Tensor,
};

/// Divisor of the memory limit: a batch's activations may take this fraction of it. The fraction is
/// small, so a low limit makes batches small. A batch of long sequences is not faster than its
/// sequences one by one.
const ACTIVATIONS_SHARE: u64 = 32;

/// Executor that owns the sessions of a family and runs paths through them on any number of
/// threads.
///
/// Sessions are created when a module is first needed, and all plans share them. If a session runs
/// on another thread, another one is created beside it.
#[derive(Debug)]
pub struct Executor {
    runtime: Runtime,
    family: Arc<Family>,
    /// Id among the process's executors. Modules with the same network share a session.
    id: u64,
    /// Caches of the sequences that run in steps.
    caches: Arc<Caches>,
    /// Memory that each network's session takes, by network.
    weights: Vec<Weights>,
    needs: Needs,
}

/// Memory that is kept free until this is dropped.
#[derive(Debug)]
pub struct Room<'a> {
    _reserve: Reserve<'a>,
}

/// Observer of the modules of a path while they run.
pub trait ModuleObserver {
    /// Receives the run time of a module after it ran.
    fn ran(&mut self, module: ModuleId, time: Duration);

    /// Receives the ways that rows took in a routed module after it ran.
    fn routed(&mut self, _module: ModuleId, _routing: &Routing) {}
}

/// Ignores all events.
impl ModuleObserver for () {
    fn ran(&mut self, _module: ModuleId, _time: Duration) {}
}

impl Executor {
    /// Creates an executor for paths of `family`, without loading anything.
    pub fn new(runtime: Runtime, family: Arc<Family>) -> Self {
        let id = runtime.residents().join();
        let networks = 0..family.num_networks();
        let weights = networks.map(|index| {
            let network = family.network(index);
            Weights { bytes: network.resident_bytes(), table_bytes: network.table_bytes() }
        });
        let weights: Vec<Weights> = weights.collect();
        let needs = Needs::new(&family, &weights);
        Self { runtime, family, id, caches: Arc::default(), weights, needs }
    }

    /// Sets the bytes of activations that modules need, by batch and tokens. Batches then keep
    /// within the memory limit.
    #[must_use]
    pub fn with_activations(
        mut self,
        measured: impl IntoIterator<Item = (ModuleId, Grid)>,
    ) -> Self {
        measured.into_iter().for_each(|(id, activations)| self.needs.measured(id, activations));
        self
    }

    /// Sets the bytes of activations that module `id` needs, by batch and tokens.
    pub fn learn_activations(&mut self, id: ModuleId, activations: Grid) {
        self.needs.measured(id, activations);
    }

    /// Returns the number of `rows` sequences of `tokens` that run at once on `path`. Without a
    /// memory limit it is all of them. With a limit, their activations fit a fraction of it, but at
    /// least one sequence runs.
    pub fn rows_at_once(&self, path: &[ModuleId], Shape { batch: rows, tokens }: Shape) -> usize {
        let Some(limit) = self.runtime.residents().limit() else {
            return rows;
        };
        let row = self.needs.of_path(path, Shape::new(1, tokens));
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

    /// Returns the number and size of the loaded modules.
    pub fn residency(&self) -> Residency {
        self.runtime.residents().residency(self.id)
    }

    /// Protects modules from eviction once they are loaded.
    pub fn pin(&self, modules: &[ModuleId]) {
        for index in modules.iter().flat_map(|id| self.family.networks_of(*id)) {
            self.runtime.residents().pin(self.key(index));
        }
    }

    /// Returns whether modules may be evicted.
    pub fn may_evict(&self) -> bool {
        self.runtime.residents().limit().is_some()
    }

    /// Returns the time to load each module; 0 if it is loaded. For experts it is the share that
    /// one token needs.
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
        let _reserve =
            self.runtime.residents().reserve(self.needs.of_path(path, Shape::new(0, 1)))?;
        let networks = path.iter().flat_map(|id| self.family.networks_of(*id));
        networks.into_iter().try_for_each(|index| self.lease(index).map(drop))
    }

    /// Loads module `id` if this evicts no others. Returns whether it is loaded.
    ///
    /// # Errors
    ///
    /// Fails when ONNX Runtime refuses the module.
    pub fn load_ahead(&self, id: ModuleId) -> Result<bool, RuntimeError> {
        // Experts are not loaded ahead, but when a token needs them.
        let first = self.family.networks_of(id).first().copied();
        let Some(first) = first.filter(|index| !self.runtime.residents().has(self.key(*index)))
        else {
            return Ok(true);
        };
        let need = self.needs.of_path(&[id], Shape::new(0, 1));
        let has_room = self.runtime.residents().has_room(need);
        if has_room {
            let _reserve = self.runtime.residents().reserve(need)?;
            self.lease(first)?;
        }
        Ok(has_room)
    }

    /// Runs `plan` from the input to the output. Returns the outputs of its last module, the
    /// family's output first.
    ///
    /// # Errors
    ///
    /// Fails when the path does not lead from the input to the output, and on a brick or an extent.
    /// Fails when a module cannot be loaded or fails.
    pub fn run(
        &self,
        plan: &Plan,
        sides: &SideInputs,
        observer: &mut impl ModuleObserver,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let path = self.path_of(plan)?;
        let reserve = self.reserve(path, sides.shape())?;
        let mut state = None;
        for id in path {
            let next = observed(*id, observer, || self.compute(*id, state.as_ref(), sides))?;
            state = next.or(state);
        }
        let outputs = state.ok_or(RuntimeError::NotAPath)?.to_tensors();
        drop(reserve);
        self.runtime.residents().trim();
        outputs
    }

    /// Returns the path of `plan`. Fails on a path that does not lead from the input to the output,
    /// and on a brick or an extent, which no module takes.
    pub(super) fn path_of<'p>(&self, plan: &'p Plan) -> Result<&'p [ModuleId], RuntimeError> {
        if let Some(choice) = plan.choices().next() {
            return Err(RuntimeError::Choice { choice });
        }
        match self.family.graph.is_path(&plan.path) {
            true => Ok(&plan.path),
            false => Err(RuntimeError::NotAPath),
        }
    }

    /// Runs one module on `state`. The identity returns `state` unchanged.
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

    /// Runs one module on a borrowed `state`, or returns `None` if the module is the identity.
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
        let reserve = self.reserve(&[id], sides.shape())?;
        let next = self.compute(id, state, sides)?;
        drop(reserve);
        self.runtime.residents().trim();
        Ok(next)
    }

    /// Waits until `bytes` of memory are free, such as for decoding a request. Keeps them free
    /// until the returned value is dropped.
    ///
    /// # Errors
    ///
    /// Fails when `bytes` do not fit under the memory limit.
    pub fn reserve_bytes(&self, bytes: u64) -> Result<Room<'_>, RuntimeError> {
        let need = Need { activations: bytes, total: bytes };
        Ok(Room { _reserve: self.runtime.residents().reserve(need)? })
    }

    /// Returns the caches of the sequences that run in steps.
    pub(super) fn caches(&self) -> &Arc<Caches> {
        &self.caches
    }

    /// Reserves the memory that `path` needs for a batch of `shape`.
    pub(super) fn reserve(
        &self,
        path: &[ModuleId],
        shape: Shape,
    ) -> Result<Reserve<'_>, RuntimeError> {
        let need = match self.runtime.residents().limit() {
            Some(_) => self.needs.of_path(path, shape),
            None => Need::default(),
        };
        self.runtime.residents().reserve(need)
    }

    /// Runs one module within the reserved memory.
    pub(super) fn compute(
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
                    next.ok_or(RuntimeError::NoOutput)
                });
                Activation::join(&parts.collect::<Result<Vec<_>, _>>()?).map(Some)
            }
            Some(Compute::Network(index)) => {
                let mut lease = self.lease(*index)?;
                let given = state.map(Activation::given).unwrap_or_default();
                let outputs = lease.session().run(&given, state.map(Activation::value), sides)?;
                made_of(outputs, state).map(Some)
            }
            Some(Compute::Routed(routed)) => {
                let module = &self.family.graph.module(id).name;
                let state =
                    state.ok_or_else(|| RuntimeError::NoState { module: module.clone() })?;
                routed::run(self, module, routed, state, sides).map(Some)
            }
        }
    }

    /// Returns the bytes of activations that module `id` needs on each of `inputs`; 0 for the
    /// identity. An input is a batch of side inputs and hidden states.
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
                // Experts are measured in the case in which one of them takes all rows.
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
        self.family.network(index).batching() == Batching::OneByOne && sides.num_rows() > 1
    }

    /// Returns the key of the session of the network at `index`.
    fn key(&self, index: usize) -> Key {
        Key { executor: self.id, network: index }
    }
}

/// Inputs on which a network is measured.
type Given<'a> = (&'a SideInputs, Option<&'a Activation>);

/// Returns the activation of a module's `outputs`, which was made of `before`. The sizes of rows
/// are those that the module gives, or as they were.
fn made_of(outputs: Outputs, before: Option<&Activation>) -> Result<Activation, RuntimeError> {
    let (sizes, values): (Vec<_>, Vec<_>) =
        outputs.into_iter().partition(|(name, _)| **name == *TOKEN_SIZES);
    let mut values = values.into_iter().map(|(_, value)| value);
    let value = values.next().ok_or(RuntimeError::NoOutput)?;
    let sizes = sizes.into_iter().next().map(|(_, sizes)| Arc::new(sizes));
    let sizes = sizes.or_else(|| before?.sizes.clone());
    Ok(Activation { others: values.collect(), sizes, ..Activation::new(value) })
}

/// Runs module `id` by `run`, and tells `observer` of it.
pub(super) fn observed(
    id: ModuleId,
    observer: &mut impl ModuleObserver,
    run: impl FnOnce() -> Result<Option<Activation>, RuntimeError>,
) -> Result<Option<Activation>, RuntimeError> {
    let start = Instant::now();
    let next = run()?;
    observer.ran(id, start.elapsed());
    if let Some(routing) = next.as_ref().and_then(Activation::routing) {
        observer.routed(id, routing);
    }
    Ok(next)
}

/// Releases the executor's sessions.
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
