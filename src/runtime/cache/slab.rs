//! Slabs: the tensors in which caches lie, and their slots.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ort::value::DynValue;

use super::{
    arrays::{Cache, Extents, Rows},
    scales::Scales,
};

use crate::{
    family::ModuleId,
    module::CacheSpec,
    runtime::{
        RuntimeError,
        activation::handed_over,
        session::{Binding, WeakBinding},
    },
};

/// Number of positions that the slots of a slab share.
const POSITIONS: usize = 1_024;

/// Smallest capacity of a slot in positions, and the factor between two capacities.
const SMALLEST: usize = 256;
const GROWTH: usize = 2;

/// Slabs of an executor. They live as long as a sequence has a slot in them.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Caches {
    slabs: Mutex<Vec<Weak<Slab>>>,
    /// Scales of 8-bit caches.
    scales: Mutex<ModuleScales>,
    /// Lock held while scales are looked for.
    looking: Mutex<()>,
}

/// Scales of 8-bit caches by module.
pub(in crate::runtime) type ModuleScales = BTreeMap<ModuleId, Arc<Scales>>;

/// Caches of one capacity for several sequences, or for one that is long.
#[derive(Debug)]
pub(super) struct Slab {
    capacity: usize,
    /// Indices of the slots without a sequence.
    free: Mutex<Vec<usize>>,
    /// Caches by the module that writes them. A module's are created when it first runs.
    caches: Mutex<BTreeMap<ModuleId, Cache>>,
    /// Rotations of all positions, by the angles between neighbouring positions.
    turns: Mutex<Vec<(Vec<f32>, Arc<Turns>)>>,
    /// Bindings of these caches to sessions, which would keep them when this is dropped.
    bindings: Mutex<Vec<WeakBinding>>,
}

/// Cosines and sines of the rotations of positions, `[capacity, angles]`.
pub(super) type Turns = [DynValue; 2];

/// Slot of a sequence, which is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slab: Arc<Slab>,
    index: usize,
}

impl Caches {
    /// Returns a free slot for `positions`, in a new slab if there is none.
    pub(super) fn slot(&self, positions: usize) -> Slot {
        let capacity = capacity_for(positions);
        let mut slabs = self.slabs.lock().unwrap_or_else(PoisonError::into_inner);
        slabs.retain(|slab| slab.strong_count() > 0);
        let live = slabs.iter().filter_map(Weak::upgrade);
        let fitting = live.filter(|slab| slab.capacity == capacity);
        if let Some(slot) = fitting.into_iter().find_map(|slab| slab.take()) {
            return slot;
        }
        let free = Mutex::new((1..slots_for(capacity)).rev().collect());
        let (caches, turns, bindings) = (Mutex::default(), Mutex::default(), Mutex::default());
        let slab = Arc::new(Slab { capacity, free, caches, turns, bindings });
        slabs.push(Arc::downgrade(&slab));
        Slot { slab, index: 0 }
    }

    /// Returns the scales of the caches `modules`, as far as there are any.
    pub(in crate::runtime) fn scales(&self, modules: &[(ModuleId, CacheSpec)]) -> ModuleScales {
        let known = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        let of_module = |(id, _): &(ModuleId, CacheSpec)| Some((*id, known.get(id)?.clone()));
        modules.iter().filter_map(of_module).collect()
    }

    /// Keeps scales that have been found.
    pub(in crate::runtime) fn keep_scales(&self, scales: &ModuleScales) {
        let mut known = self.scales.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(scales.iter().map(|(id, scales)| (*id, scales.clone())));
    }

    /// Returns a guard that keeps other threads from looking for scales.
    pub(in crate::runtime) fn look_for_scales(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of slabs in use.
    #[cfg(test)]
    pub(super) fn num_slabs(&self) -> usize {
        let slabs = self.slabs.lock().unwrap_or_else(PoisonError::into_inner);
        slabs.iter().filter(|slab| slab.strong_count() > 0).count()
    }
}

impl Slab {
    fn take(self: Arc<Self>) -> Option<Slot> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Slot { slab: self, index })
    }

    /// Returns the caches of all modules. A step holds the guard while it writes into them.
    pub(super) fn caches(&self) -> MutexGuard<'_, BTreeMap<ModuleId, Cache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the rotations of all positions by `frequencies`, the angles between neighbouring
    /// positions.
    pub(super) fn turns(&self, frequencies: &[f32]) -> Result<Arc<Turns>, RuntimeError> {
        let mut known = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, turns)) = known.iter().find(|(angles, _)| angles == frequencies) {
            return Ok(turns.clone());
        }
        let turns = |turn: fn(f32) -> f32| {
            let angles = (0..self.capacity).flat_map(|position| {
                #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
                let position = position as f32;
                frequencies.iter().map(move |frequency| turn(position * frequency))
            });
            handed_over(vec![self.capacity, frequencies.len()], angles.collect())
        };
        let turns = Arc::new([turns(f32::cos)?, turns(f32::sin)?]);
        known.push((frequencies.to_vec(), turns.clone()));
        Ok(turns)
    }

    /// Remembers a binding of these caches.
    pub(super) fn keep(&self, binding: &Binding) {
        let mut bindings = self.bindings.lock().unwrap_or_else(PoisonError::into_inner);
        bindings.retain(|known| known.strong_count() > 0);
        bindings.push(Arc::downgrade(binding));
    }

    /// Returns the shapes of the caches by module.
    pub(super) fn specs(&self) -> BTreeMap<ModuleId, CacheSpec> {
        self.caches().iter().map(|(module, cache)| (*module, cache.spec())).collect()
    }

    /// Returns the number of positions of a slot.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of slots.
    pub(super) fn num_slots(&self) -> usize {
        slots_for(self.capacity)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let bindings = self.bindings.get_mut().unwrap_or_else(PoisonError::into_inner);
        for binding in bindings.iter().filter_map(Weak::upgrade) {
            *binding.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Slot {
    /// Returns the slab of the slot.
    pub(super) fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// Returns the slot's index in its slab.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// Sets the positions `range` of a module's cache to zero, so that their pages are there.
    pub(super) fn touch(
        &self,
        module: ModuleId,
        spec: CacheSpec,
        range: Range<usize>,
    ) -> Result<(), RuntimeError> {
        let mut caches = self.slab.caches();
        let cache = match caches.entry(module) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Cache::new(
                spec,
                Extents { num_slots: self.slab.num_slots(), capacity: self.slab.capacity },
            )?),
        };
        cache.clear(self.index, range);
        Ok(())
    }

    /// Gives the pages of the positions `range` of a module's cache back.
    pub(super) fn forget(&self, module: ModuleId, range: Range<usize>) {
        if let Some(cache) = self.slab.caches().get_mut(&module) {
            cache.forget(self.index, range);
        }
    }

    /// Returns a copy of the first `length` positions of a module's cache, or `None` if it has
    /// none.
    pub(super) fn rows(&self, module: ModuleId, length: usize) -> Option<Rows> {
        self.slab.caches().get_mut(&module).map(|cache| cache.rows(self.index, length))
    }

    /// Copies the first `lengths` positions of each module's cache into the slot `to`, which has
    /// all of these caches.
    pub(super) fn copy_to(&self, to: &Self, lengths: &BTreeMap<ModuleId, usize>) {
        for (module, length) in lengths {
            // Both slots may be in one slab, which is locked for one of them at a time.
            let rows = self.rows(*module, *length);
            if let (Some(rows), Some(target)) = (rows, to.slab.caches().get_mut(module)) {
                target.write(to.index, rows);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A step holds the caches while it runs; the next sequence writes zeros in any case.
        if let Ok(mut caches) = self.slab.caches.try_lock() {
            let whole = 0..self.slab.capacity;
            caches.values_mut().for_each(|cache| cache.forget(self.index, whole.clone()));
        }
        self.slab.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// Returns the number of slots of a slab of this capacity. Slots without a token cost nothing in a
/// step.
fn slots_for(capacity: usize) -> usize {
    (POSITIONS / capacity).max(1)
}

/// Returns the smallest capacity that holds `positions`.
fn capacity_for(positions: usize) -> usize {
    let mut capacity = SMALLEST;
    while capacity < positions {
        capacity = capacity.saturating_mul(GROWTH);
    }
    capacity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_share_a_slab_until_it_is_full_and_the_last_one_frees_it() {
        let caches = Caches::default();
        let mut slots: Vec<Slot> = (0..4).map(|_| caches.slot(200)).collect();
        assert_eq!(caches.num_slabs(), 1);
        let mut indices: Vec<usize> = slots.iter().map(Slot::index).collect();
        indices.sort_unstable();
        assert_eq!(indices, (0..4).collect::<Vec<_>>());
        let beside = caches.slot(256);
        assert_eq!((caches.num_slabs(), beside.index()), (2, 0), "the first slab is full");
        let freed = slots.remove(3).index();
        assert_eq!(caches.slot(1).index(), freed);
        drop(slots);
        assert_eq!(caches.num_slabs(), 1);
        drop(beside);
        assert_eq!(caches.num_slabs(), 0);
    }

    #[test]
    fn a_longer_sequence_gets_a_slab_of_a_larger_capacity() {
        let caches = Caches::default();
        let slots = [1, 256, 257, 5_000].map(|positions| caches.slot(positions));
        let capacities = slots.each_ref().map(|slot| slot.slab().capacity());
        assert_eq!(capacities, [256, 256, 512, 8_192]);
        assert_eq!(caches.num_slabs(), 3);
    }
}
