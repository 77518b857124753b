//! Caches of keys and values: slabs of slots, blocks under the memory limit, and the sequences that
//! own them.
//!
//! A cache is a slot of a slab, `[slots, heads, capacity, head width]`. Its pages cost memory when
//! they are first touched. A block of positions is the unit that a sequence leases from the ledger
//! of the memory limit. Everything goes back when the sequence is dropped. Start at [`Sequence`].

mod arrays;
mod blocks;
mod layout;
mod scales;
mod sequence;
mod slab;
mod step;

pub(super) use scales::ChannelScales;
pub use sequence::Sequence;
pub(super) use slab::{Caches, ModuleScales};
pub use step::Tokens;
pub(super) use step::{Step, gathered};
pub use step::{StepBatch, StepRow};
