//! The files of a pool: checkpoints, records of fits, stamps, and the writer of a family's folder.
//!
//! Knows no architecture. Start at [`Checkpoint`] and [`GgufFile`] for reading and [`FamilyWriter`]
//! for writing.

mod checkpoint;
mod disk;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod gguf;
mod records;
mod seen;
mod stamps;
mod write;
mod writer;
#[cfg(test)]
#[path = "../../tests/it/support/gguf.rs"]
pub(crate) mod written;

pub use checkpoint::{Checkpoint, TensorPlace};
pub(crate) use checkpoint::{open_verified, read_verified};
pub use disk::{Disk, FileSystem};
pub(crate) use disk::{lock, sweep, sync};
pub use error::{PoolError, parse_json};
pub use gguf::{GgufFile, GgufList, GgufValue};
pub use records::{FitRecord, FitRecords, FittedFile, SplitRecord};
pub use seen::SeenTexts;
pub use stamps::Stamps;
pub use write::{today, write_atomically};
pub use writer::FamilyWriter;
pub(crate) use writer::Staged;
