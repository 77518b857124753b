//! Sequences: positions so far, and the caches of their attention modules.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    arrays::Rows,
    blocks::{BLOCK, Blocks, blocks_for},
    slab::{Caches, Slot},
};
use crate::{
    family::ModuleId,
    module::CacheSpec,
    plan::{CacheLengths, Continuation},
    runtime::{RuntimeError, residents::Residents},
};

/// Sequence of tokens that runs step by step. It owns the caches of its attention modules; their
/// memory goes back when it is dropped.
#[derive(Debug)]
pub struct Sequence {
    caches: Arc<Caches>,
    slot: Option<Slot>,
    lengths: CacheLengths,
    /// Number of leased blocks of each module's cache.
    num_blocks: BTreeMap<ModuleId, usize>,
    blocks: Blocks,
}

impl Sequence {
    /// Creates a sequence without positions.
    pub(in crate::runtime) fn new(caches: Arc<Caches>, residents: Arc<Residents>) -> Self {
        Self {
            caches,
            slot: None,
            lengths: CacheLengths::default(),
            num_blocks: BTreeMap::new(),
            blocks: Blocks::new(residents),
        }
    }

    /// Returns the number of positions so far.
    pub fn position(&self) -> usize {
        self.lengths.position()
    }

    /// Returns the bytes of the blocks that the sequence holds.
    pub fn cache_bytes(&self) -> u64 {
        self.blocks.bytes()
    }

    /// Returns the cost of going on with a plan of the attention modules `attention`.
    pub fn continuation(&self, attention: &[ModuleId]) -> Continuation {
        self.lengths.continuation(&indices(attention))
    }

    /// Creates a sequence that begins with the first `positions` of this one, whose caches it
    /// copies. Another sequence with the same first tokens goes on from there.
    ///
    /// # Errors
    ///
    /// Fails when the blocks do not fit under the memory limit.
    pub fn fork(&self, positions: usize) -> Result<Self, RuntimeError> {
        let mut copy = Self::new(self.caches.clone(), self.blocks.residents());
        let positions = positions.min(self.position());
        let (Some(slot), 1..) = (&self.slot, positions) else {
            return Ok(copy);
        };
        let specs = slot.slab().specs().into_iter();
        let is_own = |(module, _): &(ModuleId, CacheSpec)| self.num_blocks.contains_key(module);
        let modules: Vec<(ModuleId, CacheSpec)> = specs.filter(is_own).collect();
        copy.reserve(&modules, positions)?;
        let lengths = modules.iter().map(|(module, _)| (*module, positions)).collect();
        if let Some(target) = &copy.slot {
            slot.copy_to(target, &lengths);
        }
        copy.lengths = self.lengths.clone();
        copy.lengths.truncate(positions);
        Ok(copy)
    }

    /// Takes the positions from `position` on back, such as drafted tokens that were refused.
    /// Blocks without a position go back to the ledger.
    pub fn truncate(&mut self, position: usize) {
        self.lengths.truncate(position);
        let Some(slot) = &self.slot else { return };
        let (kept, specs) = (blocks_for(position), slot.slab().specs());
        for (module, held) in &mut self.num_blocks {
            let (Some(spec), true) = (specs.get(module), kept < *held) else { continue };
            slot.forget(*module, kept * BLOCK..*held * BLOCK);
            self.blocks.shrink(bytes_of(*held - kept, *spec));
            *held = kept;
        }
    }

    /// Makes room for `num_tokens` more positions in the caches `modules`.
    ///
    /// # Errors
    ///
    /// Fails when the blocks do not fit under the memory limit. The sequence is then as before.
    pub(super) fn reserve(
        &mut self,
        modules: &[(ModuleId, CacheSpec)],
        num_tokens: usize,
    ) -> Result<(), RuntimeError> {
        let positions = self.position() + num_tokens;
        self.move_up(positions)?;
        let wanted = blocks_for(positions);
        for (module, spec) in modules {
            let held = self.num_blocks.get(module).copied().unwrap_or(0);
            if wanted <= held {
                continue;
            }
            self.blocks.grow(bytes_of(wanted - held, *spec))?;
            if let Some(slot) = &self.slot {
                slot.touch(*module, *spec, held * BLOCK..wanted * BLOCK)?;
            }
            self.num_blocks.insert(*module, wanted);
        }
        Ok(())
    }

    /// Takes a slot that holds `positions`, and moves the caches into it.
    fn move_up(&mut self, positions: usize) -> Result<(), RuntimeError> {
        let fits = |slot: &Slot| slot.slab().capacity() >= blocks_for(positions) * BLOCK;
        if self.slot.as_ref().is_some_and(fits) {
            return Ok(());
        }
        let slot = self.caches.slot(blocks_for(positions) * BLOCK);
        if let Some(old) = self.slot.take() {
            let specs = old.slab().specs();
            let mut lengths = BTreeMap::new();
            for (module, blocks) in &self.num_blocks {
                if let Some(spec) = specs.get(module) {
                    slot.touch(*module, *spec, 0..blocks * BLOCK)?;
                    lengths.insert(*module, blocks * BLOCK);
                }
            }
            old.copy_to(&slot, &lengths);
        }
        self.slot = Some(slot);
        Ok(())
    }

    /// Returns the levels of all positions in the 8-bit cache of `module`: those of each head's
    /// keys, then those of each head's values. They are empty if there are none.
    pub(in crate::runtime) fn levels(&self, module: ModuleId) -> Vec<Vec<i8>> {
        let rows = self.slot.as_ref().and_then(|slot| slot.rows(module, self.position()));
        match rows {
            Some(Rows::Int8(levels)) => levels,
            _ => Vec::new(),
        }
    }

    /// Returns the slot, or `None` before the first step.
    pub(super) fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }

    /// Notes that a plan with the modules `attention` ran over `num_tokens` new positions.
    pub(super) fn advance(&mut self, attention: &[ModuleId], num_tokens: usize) {
        self.lengths.advance(&indices(attention), num_tokens);
    }
}

/// Returns the bytes of blocks of a cache.
fn bytes_of(num_blocks: usize, spec: CacheSpec) -> u64 {
    num_blocks as u64 * BLOCK as u64 * spec.bytes_per_token()
}

fn indices(modules: &[ModuleId]) -> Vec<usize> {
    modules.iter().map(|module| module.0).collect()
}
