//! Steps of sequences: new tokens of several sequences run through a plan together.

use std::time::Instant;

use ort::value::Tensor as OrtTensor;

use super::{
    Activation, Executor, ModuleObserver, RuntimeError, Sequence, SideInputs, StepBatch,
    activation::view,
    cache::{ModuleScales, Step, gathered},
    executor::observed,
    routed::Networks,
};
use crate::{
    assembly::StepRun,
    family::ModuleId,
    module::{CacheSpec, INPUT_IDS},
    plan::{Plan, Shape},
};

/// Caches that a step reads and writes.
pub(super) struct StepCaches<'a> {
    /// Modules that keep a cache, with their caches.
    pub(super) modules: &'a [(ModuleId, CacheSpec)],
    /// Scales of those with 8 bits.
    pub(super) scales: ModuleScales,
}

impl Executor {
    /// Creates a sequence without positions, for the steps of [`forward`](Self::forward).
    pub fn sequence(&self) -> Sequence {
        let residents = self.runtime().residents().clone();
        Sequence::new(self.caches().clone(), residents)
    }

    /// Returns the modules of `plan` that keep a cache, with their caches.
    pub fn caches_of(&self, plan: &Plan) -> Vec<(ModuleId, CacheSpec)> {
        let cached = |id: &ModuleId| Some((*id, self.family().cache(*id)?));
        plan.path.iter().filter_map(cached).collect()
    }

    /// Runs the new tokens of sequences through `plan`. Returns the outputs of its last module for
    /// the wanted tokens, one row each, `[1, wanted, …]`, the family's output first. If no token is
    /// wanted, the last module does not run and this is `None`.
    ///
    /// A step that fails changes no sequence but for the blocks that it leased.
    ///
    /// # Errors
    ///
    /// Fails when a sequence lacks positions in a cache of `plan`, or blocks do not fit under the
    /// memory limit. Fails when a module cannot be loaded or fails.
    pub fn forward(
        &self,
        plan: &Plan,
        batch: &mut StepBatch<'_>,
        observer: &mut impl ModuleObserver,
    ) -> Result<Option<Activation>, RuntimeError> {
        let modules = self.caches_of(plan);
        let scales = self.scales_of(plan, &modules)?;
        self.forward_scaled(plan, StepCaches { modules: &modules, scales }, batch, observer)
    }

    /// Runs a step like [`forward`](Self::forward) in `caches`, those of `plan`.
    pub(super) fn forward_scaled(
        &self,
        plan: &Plan,
        caches: StepCaches<'_>,
        batch: &mut StepBatch<'_>,
        observer: &mut impl ModuleObserver,
    ) -> Result<Option<Activation>, RuntimeError> {
        let path = self.path_of(plan)?;
        let (last, before) = path.split_last().ok_or(RuntimeError::NotAPath)?;
        let StepCaches { modules, scales } = caches;
        let step = batch.reserve(modules, scales)?;
        let ids = batch.token_ids();
        let reserve = self.reserve(path, Shape::new(1, ids.len()))?;
        let sides = packed(ids)?;
        let mut state = None;
        let mut rest = before;
        while let Some((id, others)) = rest.split_first() {
            let next = match (self.family().step_run(*id), &state) {
                (Some(own), Some(state)) => {
                    rest = rest.strip_prefix(&own.modules[..]).ok_or(RuntimeError::NotAPath)?;
                    Some(self.step_run(own, state, &step, observer)?)
                }
                _ => {
                    rest = others;
                    observed(*id, observer, || self.compute(*id, state.as_ref(), &sides))?
                }
            };
            state = next.or(state);
        }
        let state = state.ok_or(RuntimeError::NotAPath)?;
        // Scores of the other tokens would be thrown away.
        let wanted = batch.wanted_rows();
        let outputs = match wanted.is_empty() {
            true => None,
            false => {
                let (shape, hidden) = view(state.value())?;
                let width = shape.last().copied().unwrap_or(1);
                let wanted = Activation::new(gathered(hidden, width, &wanted)?);
                let run = || self.compute(*last, Some(&wanted), &sides);
                Some(observed(*last, observer, run)?.unwrap_or(wanted))
            }
        };
        batch.commit(modules);
        drop(reserve);
        self.runtime().residents().trim();
        Ok(outputs)
    }

    /// Runs modules of a step in one session, and tells `observer` that they shared the time.
    fn step_run(
        &self,
        run: &StepRun,
        state: &Activation,
        step: &Step,
        observer: &mut impl ModuleObserver,
    ) -> Result<Activation, RuntimeError> {
        let start = Instant::now();
        let cached = self.family().network(run.network).cached().ok_or(RuntimeError::NotAPath)?;
        let mut lease = self.lease(run.network)?;
        let next = step.run(run, cached, lease.session(), state)?;
        let num_modules = u32::try_from(run.modules.len()).unwrap_or(u32::MAX);
        let share = start.elapsed() / num_modules.max(1);
        run.modules.iter().for_each(|id| observer.ran(*id, share));
        Ok(next)
    }
}

/// Returns packed token ids as inputs of modules. There is no padding, so there is no mask.
fn packed(ids: Vec<i64>) -> Result<SideInputs, RuntimeError> {
    let value = OrtTensor::from_array(([1, ids.len()], ids))
        .map_err(|source| RuntimeError::Tensor { source })?;
    Ok(SideInputs { values: vec![(INPUT_IDS, value.into_dyn())] })
}
