//! A step: new tokens of several sequences, which run together.

use std::{collections::BTreeMap, sync::Arc};

use ort::value::{DynValue, Tensor as OrtTensor};

use super::{
    arrays::Cache,
    layout::{Layout, Share, small},
    sequence::Sequence,
    slab::{ModuleScales, Slab},
};
use crate::{
    assembly::StepRun,
    family::ModuleId,
    module::{
        COSINES, CacheSpec, Cached, LENGTHS, PLACES, POSITIONS, QUERY_LENGTHS, ROWS, SINES,
        TOTAL_LENGTH,
    },
    plan::Continuation,
    runtime::{
        Activation, RuntimeError,
        activation::{handed_over, view},
        session::{Binding, BoundCache, ModuleSession},
    },
};

/// New tokens of sequences that run one step together.
#[derive(Debug, Default)]
pub struct StepBatch<'s> {
    /// Sequences with their new tokens.
    pub rows: Vec<StepRow<'s>>,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub struct StepRow<'s> {
    /// Sequence.
    pub sequence: &'s mut Sequence,
    /// Ids of the new tokens.
    pub tokens: Vec<i64>,
    /// Tokens for which outputs are wanted.
    pub wanted: Tokens,
}

/// Tokens of a sequence's step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// None of them, such as those of a chunk before the prompt's end.
    None,
    /// The last one.
    Last,
    /// All of them.
    All,
}

/// Step that runs: its sequences have room for their new tokens.
#[derive(Debug)]
pub(in crate::runtime) struct Step {
    groups: Vec<Group>,
    num_tokens: usize,
    /// Scales of 8-bit caches.
    scales: ModuleScales,
}

/// Sequences of a slab, which run in one call.
#[derive(Debug)]
struct Group {
    slab: Arc<Slab>,
    /// Whether the sequences have one new token each.
    is_single: bool,
    /// Rows of the step's tokens.
    rows: Vec<usize>,
    shares: Vec<Share>,
    /// Inputs of modules beside the hidden states, the caches and rotations.
    inputs: Vec<(&'static str, DynValue)>,
}

impl StepBatch<'_> {
    /// Returns the ids of all new tokens, one sequence after the other.
    pub(in crate::runtime) fn token_ids(&self) -> Vec<i64> {
        self.rows.iter().flat_map(|row| row.tokens.iter().copied()).collect()
    }

    /// Returns the rows of the tokens for which outputs are wanted.
    pub(in crate::runtime) fn wanted_rows(&self) -> Vec<usize> {
        let mut start = 0;
        let mut wanted = Vec::new();
        for row in &self.rows {
            let end = start + row.tokens.len();
            wanted.extend(match row.wanted {
                Tokens::None => end..end,
                Tokens::Last => end - 1..end,
                Tokens::All => start..end,
            });
            start = end;
        }
        wanted
    }

    /// Makes room for the new tokens in the caches `modules`, and plans the step. 8-bit caches have
    /// `scales`.
    ///
    /// # Errors
    ///
    /// Fails when a sequence has no new token, or lacks earlier positions in one of the caches.
    /// Fails when the blocks do not fit under the memory limit.
    pub(in crate::runtime) fn reserve(
        &mut self,
        modules: &[(ModuleId, CacheSpec)],
        scales: ModuleScales,
    ) -> Result<Step, RuntimeError> {
        let attention: Vec<ModuleId> = modules.iter().map(|(module, _)| *module).collect();
        let mut step = Step { groups: Vec::new(), num_tokens: 0, scales };
        for row in &mut self.rows {
            let num_tokens = row.tokens.len();
            let continuation = row.sequence.continuation(&attention);
            if num_tokens == 0 || continuation != Continuation::Free {
                return Err(RuntimeError::Behind { continuation });
            }
            row.sequence.reserve(modules, num_tokens)?;
            step.add(row.sequence, num_tokens);
        }
        step.groups.iter_mut().try_for_each(Group::lay_out)?;
        Ok(step)
    }

    /// Notes that the new tokens ran through the caches `modules`.
    pub(in crate::runtime) fn commit(&mut self, modules: &[(ModuleId, CacheSpec)]) {
        let attention: Vec<ModuleId> = modules.iter().map(|(module, _)| *module).collect();
        for row in &mut self.rows {
            row.sequence.advance(&attention, row.tokens.len());
        }
    }
}

impl Step {
    /// Adds the tokens of a sequence. Sequences with one token each run apart from others, since a
    /// call pads to its longest sequence.
    fn add(&mut self, sequence: &Sequence, num_tokens: usize) {
        let Some(slot) = sequence.slot() else { return };
        let is_single = num_tokens == 1;
        let is_its =
            |group: &Group| Arc::ptr_eq(&group.slab, slot.slab()) && group.is_single == is_single;
        let index = self.groups.iter().position(is_its).unwrap_or_else(|| {
            let (rows, shares, inputs) = (Vec::new(), Vec::new(), Vec::new());
            self.groups.push(Group { slab: slot.slab().clone(), is_single, rows, shares, inputs });
            self.groups.len() - 1
        });
        let group = &mut self.groups[index];
        group.rows.extend(self.num_tokens..self.num_tokens + num_tokens);
        group.shares.push(Share { slot: slot.index(), past: sequence.position(), num_tokens });
        self.num_tokens += num_tokens;
    }

    /// Runs the modules of `run`, whose network is in `session`, one call for each group.
    pub(in crate::runtime) fn run(
        &self,
        run: &StepRun,
        cached: &Cached,
        session: &mut ModuleSession,
        state: &Activation,
    ) -> Result<Activation, RuntimeError> {
        if let [group] = &self.groups[..] {
            let call = Call { run, cached, scales: &self.scales };
            return group.run(call, session, state.value()).map(Activation::new);
        }
        let (shape, hidden) = view(state.value())?;
        let width = shape.last().copied().unwrap_or(1);
        let mut mixed = vec![0.0; hidden.len()];
        for group in &self.groups {
            let own = gathered(hidden, width, &group.rows)?;
            let call = Call { run, cached, scales: &self.scales };
            let made = group.run(call, session, &own)?;
            let (_, made) = view(&made)?;
            for (row, values) in group.rows.iter().zip(made.chunks_exact(width)) {
                mixed[row * width..][..width].copy_from_slice(values);
            }
        }
        Ok(Activation::new(handed_over(shape, mixed)?))
    }
}

/// Modules that run in a call, their caches, and the scales of those.
#[derive(Clone, Copy)]
struct Call<'a> {
    run: &'a StepRun,
    cached: &'a Cached,
    scales: &'a ModuleScales,
}

impl Group {
    fn run(
        &self,
        call: Call<'_>,
        session: &mut ModuleSession,
        state: &DynValue,
    ) -> Result<DynValue, RuntimeError> {
        let Call { run, cached, scales } = call;
        let turns = self.slab.turns(&cached.frequencies)?;
        let [cosines, sines] = &*turns;
        let inputs = self.inputs.iter().map(|(name, value)| (*name, value));
        let inputs: Vec<(&str, &DynValue)> =
            inputs.chain([(COSINES, cosines), (SINES, sines)]).collect();
        let mut caches = self.slab.caches();
        let own = caches.iter_mut().filter(|(id, _)| run.attention.contains(id));
        let mut own: BTreeMap<ModuleId, &mut Cache> = own.map(|(id, own)| (*id, own)).collect();
        let own = run.attention.iter().map(|id| {
            let cache = own.remove(id).expect("a step reserves the caches of its modules");
            let scales = scales.get(id).map(|own| [&own.keys, &own.values]);
            BoundCache { keys: &mut cache.keys, values: &mut cache.values, scales }
        });
        let keep = |binding: &Binding| self.slab.keep(binding);
        session.run_cached(&inputs, state, &mut own.collect::<Vec<_>>(), keep)
    }

    /// Lays the tokens out among the slots. All attention modules of the step get the same layout.
    fn lay_out(&mut self) -> Result<(), RuntimeError> {
        let num_slots = self.slab.num_slots();
        let layout = Layout::new(num_slots, &self.shares);
        let total = vec![small(self.slab.capacity())];
        self.inputs = vec![
            (ROWS, value(vec![num_slots, layout.longest], layout.rows)?),
            (PLACES, value(vec![layout.places.len() / 2, 2], layout.places)?),
            (POSITIONS, value(vec![1, layout.positions.len()], layout.positions)?),
            (LENGTHS, value(vec![num_slots], layout.lengths)?),
            (QUERY_LENGTHS, value(vec![num_slots], layout.queries)?),
            (TOTAL_LENGTH, value(Vec::new(), total)?),
        ];
        Ok(())
    }
}

/// Returns the rows `rows` of packed hidden states as packed hidden states.
pub(in crate::runtime) fn gathered(
    hidden: &[f32],
    width: usize,
    rows: &[usize],
) -> Result<DynValue, RuntimeError> {
    let own = rows.iter().flat_map(|row| &hidden[row * width..][..width]);
    handed_over(vec![1, rows.len(), width], own.copied().collect())
}

fn value<T>(shape: Vec<usize>, values: Vec<T>) -> Result<DynValue, RuntimeError>
where
    T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    let tensor = OrtTensor::from_array((shape, values));
    tensor.map(OrtTensor::into_dyn).map_err(|source| RuntimeError::Tensor { source })
}
