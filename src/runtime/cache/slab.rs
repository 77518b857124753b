//! Slabs: the tensors in which caches lie, and their slots.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use ort::{
    memory::Allocator,
    value::{DynValue, Tensor as OrtTensor},
};

use crate::{
    family::ModuleId,
    module::CacheSpec,
    runtime::{RuntimeError, activation::handed_over},
    tensor::forget_pages,
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
}

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
}

/// Cosines and sines of the rotations of positions, `[capacity, angles]`.
pub(super) type Turns = [DynValue; 2];

/// Keys and values of one module, `[slots, heads, capacity, head width]`.
#[derive(Debug)]
pub(in crate::runtime) struct Cache {
    spec: CacheSpec,
    capacity: usize,
    pub(in crate::runtime) keys: OrtTensor<f32>,
    pub(in crate::runtime) values: OrtTensor<f32>,
}

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
        let slab =
            Arc::new(Slab { capacity, free, caches: Mutex::default(), turns: Mutex::default() });
        slabs.push(Arc::downgrade(&slab));
        Slot { slab, index: 0 }
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

    /// Returns the shapes of the caches by module.
    pub(super) fn specs(&self) -> BTreeMap<ModuleId, CacheSpec> {
        self.caches().iter().map(|(module, cache)| (*module, cache.spec)).collect()
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
            Entry::Vacant(place) => place.insert(Cache::new(spec, self.slab.capacity)?),
        };
        cache.of_slot(self.index, |part| part[range_of(spec, &range)].fill(0.0));
        Ok(())
    }

    /// Gives the pages of the positions `range` of a module's cache back.
    pub(super) fn forget(&self, module: ModuleId, range: Range<usize>) {
        if let Some(cache) = self.slab.caches().get_mut(&module) {
            let range = range_of(cache.spec, &range);
            cache.of_slot(self.index, |part| forget_pages(&mut part[range.clone()]));
        }
    }

    /// Copies the first `lengths` positions of each module's cache into the slot `to`, which has
    /// all of these caches.
    pub(super) fn copy_to(&self, to: &Self, lengths: &BTreeMap<ModuleId, usize>) {
        for (module, length) in lengths {
            // Both slots may be in one slab, which is locked for one of them at a time.
            let mut copied = Vec::new();
            if let Some(source) = self.slab.caches().get_mut(module) {
                let range = range_of(source.spec, &(0..*length));
                source.of_slot(self.index, |part| copied.push(part[range.clone()].to_vec()));
            }
            if let Some(target) = to.slab.caches().get_mut(module) {
                let mut parts = copied.into_iter();
                target.of_slot(to.index, |part| {
                    if let Some(values) = parts.next() {
                        part[..values.len()].copy_from_slice(&values);
                    }
                });
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A step holds the caches while it runs; the next sequence writes zeros in any case.
        if let Ok(mut caches) = self.slab.caches.try_lock() {
            caches.values_mut().for_each(|cache| cache.of_slot(self.index, forget_pages));
        }
        self.slab.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

impl Cache {
    fn new(spec: CacheSpec, capacity: usize) -> Result<Self, RuntimeError> {
        let wrap = |source| RuntimeError::Tensor { source };
        let shape = [slots_for(capacity), spec.num_heads, capacity, spec.head_width];
        let create = || {
            let mut tensor = OrtTensor::<f32>::new(&Allocator::default(), shape).map_err(wrap)?;
            // The library has written zeros. Positions without a token are to have no pages.
            forget_pages(tensor.extract_tensor_mut().1);
            Ok::<_, RuntimeError>(tensor)
        };
        Ok(Self { spec, capacity, keys: create()?, values: create()? })
    }

    /// Calls `change` with the keys and the values of each head of a slot.
    fn of_slot(&mut self, slot: usize, mut change: impl FnMut(&mut [f32])) {
        let head = self.capacity * self.spec.head_width;
        let start = slot * self.spec.num_heads * head;
        for tensor in [&mut self.keys, &mut self.values] {
            let (_, all) = tensor.extract_tensor_mut();
            let own = &mut all[start..][..self.spec.num_heads * head];
            own.chunks_exact_mut(head).for_each(&mut change);
        }
    }
}

/// Returns the elements of the positions `range` in one head of a cache.
fn range_of(spec: CacheSpec, range: &Range<usize>) -> Range<usize> {
    range.start * spec.head_width..range.end * spec.head_width
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
