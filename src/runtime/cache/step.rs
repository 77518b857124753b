//! A step: new tokens of several sequences, which run together.

use std::sync::Arc;

use ort::value::{DynValue, Tensor as OrtTensor};

use super::{
    layout::{Layout, Share, small},
    sequence::Sequence,
    slab::{Cache, Slab},
};
use crate::{
    family::ModuleId,
    module::{
        COSINES, CacheSpec, Cached, LENGTHS, PLACES, QUERY_LENGTHS, ROWS, SINES, TOTAL_LENGTH,
    },
    plan::Continuation,
    runtime::{
        Activation, RuntimeError,
        activation::{handed_over, view},
        session::ModuleSession,
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
}

/// Sequences of a slab whose attention runs in one call.
#[derive(Debug)]
struct Group {
    slab: Arc<Slab>,
    /// Whether the sequences have one new token each.
    is_single: bool,
    /// Rows of the step's tokens.
    rows: Vec<usize>,
    shares: Vec<Share>,
}

/// Inputs that a group's attention gets beside the hidden states and the caches.
#[derive(Debug)]
struct Inputs(Vec<(&'static str, DynValue)>);

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
            wanted.extend(if row.wanted == Tokens::All { start..end } else { end - 1..end });
            start = end;
        }
        wanted
    }

    /// Makes room for the new tokens in the caches `modules`, and plans the step.
    ///
    /// # Errors
    ///
    /// Fails when a sequence has no new token, or lacks earlier positions in one of the caches.
    /// Fails when the blocks do not fit under the memory limit.
    pub(in crate::runtime) fn reserve(
        &mut self,
        modules: &[(ModuleId, CacheSpec)],
    ) -> Result<Step, RuntimeError> {
        let attention: Vec<ModuleId> = modules.iter().map(|(module, _)| *module).collect();
        let mut step = Step { groups: Vec::new(), num_tokens: 0 };
        for row in &mut self.rows {
            let num_tokens = row.tokens.len();
            let continuation = row.sequence.continuation(&attention);
            if num_tokens == 0 || continuation != Continuation::Free {
                return Err(RuntimeError::Behind { continuation });
            }
            row.sequence.reserve(modules, num_tokens)?;
            step.add(row.sequence, num_tokens);
        }
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
            let (slab, rows, shares) = (slot.slab().clone(), Vec::new(), Vec::new());
            self.groups.push(Group { slab, is_single, rows, shares });
            self.groups.len() - 1
        });
        let group = &mut self.groups[index];
        group.rows.extend(self.num_tokens..self.num_tokens + num_tokens);
        group.shares.push(Share { slot: slot.index(), past: sequence.position(), num_tokens });
        self.num_tokens += num_tokens;
    }

    /// Runs the attention of `module`, one call for each group.
    pub(in crate::runtime) fn attend(
        &self,
        module: ModuleId,
        cached: &Cached,
        session: &mut ModuleSession,
        state: &Activation,
    ) -> Result<Activation, RuntimeError> {
        if let [group] = &self.groups[..] {
            return group.attend(module, cached, session, state.value()).map(Activation::new);
        }
        let (shape, hidden) = view(state.value())?;
        let width = shape.last().copied().unwrap_or(1);
        let mut mixed = vec![0.0; hidden.len()];
        for group in &self.groups {
            let own = gathered(hidden, width, &group.rows)?;
            let made = group.attend(module, cached, session, &own)?;
            let (_, made) = view(&made)?;
            for (row, values) in group.rows.iter().zip(made.chunks_exact(width)) {
                mixed[row * width..][..width].copy_from_slice(values);
            }
        }
        Ok(Activation::new(handed_over(shape, mixed)?))
    }
}

impl Group {
    fn attend(
        &self,
        module: ModuleId,
        cached: &Cached,
        session: &mut ModuleSession,
        state: &DynValue,
    ) -> Result<DynValue, RuntimeError> {
        let inputs = self.inputs(cached)?;
        let mut caches = self.slab.caches();
        let cache = caches.get_mut(&module).expect("a step reserves the caches of its modules");
        let Cache { keys, values, .. } = cache;
        session.run_cached(&inputs.0, state, [keys, values])
    }

    fn inputs(&self, cached: &Cached) -> Result<Inputs, RuntimeError> {
        let num_slots = self.slab.num_slots();
        let layout = Layout::new(num_slots, &self.shares);
        let turns = |turn: fn(f32) -> f32| {
            let angles = layout.positions.iter().flat_map(|position| {
                #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
                let position = *position as f32;
                cached.frequencies.iter().map(move |frequency| turn(position * frequency))
            });
            handed_over(vec![layout.positions.len(), cached.frequencies.len()], angles.collect())
        };
        let total = vec![small(self.slab.capacity())];
        Ok(Inputs(vec![
            (COSINES, turns(f32::cos)?),
            (SINES, turns(f32::sin)?),
            (ROWS, value(vec![num_slots, layout.longest], layout.rows)?),
            (PLACES, value(vec![layout.places.len()], layout.places)?),
            (LENGTHS, value(vec![num_slots], layout.lengths)?),
            (QUERY_LENGTHS, value(vec![num_slots], layout.queries)?),
            (TOTAL_LENGTH, value(Vec::new(), total)?),
        ]))
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
