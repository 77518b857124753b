//! An open-loop load driver: requests arrive on schedule, whether or not the last one is answered.
//!
//! This module knows a server only by its address. Start at [`Target`] and [`drive`].

mod arrivals;
mod drive;
mod error;
mod measured;
mod target;

pub use arrivals::{Arrivals, Pattern};
pub use drive::{Load, capacity, drive};
pub use error::BenchError;
pub use measured::{Measured, Percentiles};
pub use target::{FrontPlan, Message, Sample, Target};
