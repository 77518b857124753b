//! Arrays of a module's keys and values in a slab.

use std::{fmt::Debug, ops::Range};

use ort::{
    memory::Allocator,
    value::{DynValue, PrimitiveTensorElementType, Tensor as OrtTensor},
};

use crate::{
    family::CacheType,
    module::CacheSpec,
    runtime::RuntimeError,
    tensor::{Plain, forget_pages},
};

/// Keys and values of one module, `[slots, heads, capacity, head width]`.
#[derive(Debug)]
pub(in crate::runtime) struct Cache {
    spec: CacheSpec,
    extents: Extents,
    pub(in crate::runtime) keys: DynValue,
    pub(in crate::runtime) values: DynValue,
}

/// Extents of a slab.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub(super) num_slots: usize,
    /// Number of positions of a slot.
    pub(super) capacity: usize,
}

/// First positions of a slot: those of each head's keys, then those of each head's values.
#[derive(Debug)]
pub(in crate::runtime) enum Rows {
    F32(Vec<Vec<f32>>),
    Int8(Vec<Vec<i8>>),
}

/// Element of a cache.
trait Element: Plain + PrimitiveTensorElementType + Debug + 'static {}

impl Element for f32 {}

impl Element for i8 {}

impl Cache {
    /// Creates a cache whose positions have no pages.
    pub(super) fn new(spec: CacheSpec, extents: Extents) -> Result<Self, RuntimeError> {
        let create = || match spec.cache_type {
            CacheType::F32 => array::<f32>(spec, extents),
            CacheType::Int8 => array::<i8>(spec, extents),
        };
        Ok(Self { spec, extents, keys: create()?, values: create()? })
    }

    /// Returns the shape of the cache.
    pub(super) fn spec(&self) -> CacheSpec {
        self.spec
    }

    /// Sets the positions `range` of a slot to zero, so that their pages are there.
    pub(super) fn clear(&mut self, slot: usize, range: Range<usize>) {
        let range = self.elements(range);
        match self.spec.cache_type {
            CacheType::F32 => self.each::<f32>(slot, |part| part[range.clone()].fill(0.0)),
            CacheType::Int8 => self.each::<i8>(slot, |part| part[range.clone()].fill(0)),
        }
    }

    /// Gives the pages of the positions `range` of a slot back.
    pub(super) fn forget(&mut self, slot: usize, range: Range<usize>) {
        let range = self.elements(range);
        match self.spec.cache_type {
            CacheType::F32 => {
                self.each::<f32>(slot, |part| forget_pages(&mut part[range.clone()]));
            }
            CacheType::Int8 => {
                self.each::<i8>(slot, |part| forget_pages(&mut part[range.clone()]));
            }
        }
    }

    /// Returns a copy of the first `length` positions of a slot.
    pub(super) fn rows(&mut self, slot: usize, length: usize) -> Rows {
        match self.spec.cache_type {
            CacheType::F32 => Rows::F32(self.copied(slot, length)),
            CacheType::Int8 => Rows::Int8(self.copied(slot, length)),
        }
    }

    /// Writes the first positions of a slot. Rows of another type are left out.
    pub(super) fn write(&mut self, slot: usize, rows: Rows) {
        match (self.spec.cache_type, rows) {
            (CacheType::F32, Rows::F32(rows)) => self.fill(slot, rows),
            (CacheType::Int8, Rows::Int8(rows)) => self.fill(slot, rows),
            _ => {}
        }
    }

    fn copied<T: Element>(&mut self, slot: usize, length: usize) -> Vec<Vec<T>> {
        let range = self.elements(0..length);
        let mut rows = Vec::new();
        self.each::<T>(slot, |part| rows.push(part[range.clone()].to_vec()));
        rows
    }

    fn fill<T: Element>(&mut self, slot: usize, rows: Vec<Vec<T>>) {
        let mut rows = rows.into_iter();
        self.each::<T>(slot, |part| {
            if let Some(row) = rows.next() {
                part[..row.len()].copy_from_slice(&row);
            }
        });
    }

    /// Calls `change` with the keys and then the values of each head of a slot.
    fn each<T: Element>(&mut self, slot: usize, mut change: impl FnMut(&mut [T])) {
        let head = self.extents.capacity * self.spec.head_width;
        let width = self.spec.num_heads * head;
        for tensor in [&mut self.keys, &mut self.values] {
            let (_, all) = tensor.try_extract_tensor_mut::<T>().expect("the type of the spec");
            all[slot * width..][..width].chunks_exact_mut(head).for_each(&mut change);
        }
    }

    /// Returns the elements of the positions `range` in one head of a slot.
    fn elements(&self, range: Range<usize>) -> Range<usize> {
        range.start * self.spec.head_width..range.end * self.spec.head_width
    }
}

/// Creates an array of zeros without pages.
fn array<T: Element>(spec: CacheSpec, extents: Extents) -> Result<DynValue, RuntimeError> {
    let shape = [extents.num_slots, spec.num_heads, extents.capacity, spec.head_width];
    let tensor = OrtTensor::<T>::new(&Allocator::default(), shape);
    let mut tensor = tensor.map_err(|source| RuntimeError::Tensor { source })?;
    // The library has written zeros. Positions without a token are to have no pages.
    forget_pages(tensor.extract_tensor_mut().1);
    Ok(tensor.into_dyn())
}
