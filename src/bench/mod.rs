//! An open-loop load driver: requests arrive when they arrive, whether or not the last is answered.
//!
//! Knows a server by its address only. Start at [`Target`] and [`drive`].

mod arrivals;
mod drive;
mod error;
mod measured;
mod target;

pub use arrivals::Arrivals;
pub use drive::{Load, capacity, drive};
pub use error::BenchError;
pub use measured::{Measured, Percentiles};
pub use target::{FrontPlan, Message, Target};
