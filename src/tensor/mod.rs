//! Element types, shapes, tensor values and units.
//!
//! This is the lowest room: all others use its types. It does not know any file format, wire format
//! or runtime. Start at [`Tensor`].

mod chain;
mod data_type;
mod file;
#[cfg(test)]
mod fuzz_tests;
mod heap;
mod hex;
pub mod json;
mod mapped;
#[cfg(test)]
pub(crate) mod mutate;
mod panic;
mod units;
mod value;

pub use chain::chain;
pub use data_type::DataType;
pub use file::{FileKind, open_file, read_bytes, read_text};
pub use heap::{MappedApart, Plain, forget_pages, give_back_freed_memory, reuse_freed_memory};
pub use hex::hex;
pub use mapped::MappedFile;
pub use panic::panic_literal;
pub use units::{ByteSize, ParseByteSizeError};
pub use value::{Tensor, TensorData, TensorError, TensorSpec, signed};
