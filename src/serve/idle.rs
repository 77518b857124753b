//! Measurements that are made while no request is to be answered.

use std::fmt::Debug;

use crate::{offer::Profile, runtime::Executor};

/// Measurements of a family's modules that are made a little at a time.
pub trait IdleWork: Debug + Send + Sync {
    /// Goes on for about two milliseconds. What is measured counts if `is_quiet` returns true after
    /// it: no request ran, waited or arrived meanwhile.
    fn turn(&mut self, executor: &Executor, is_quiet: &dyn Fn() -> bool) -> IdleTurn;
}

/// State of measurements after a turn.
#[derive(Debug)]
pub enum IdleTurn {
    /// There is more to measure.
    More,
    /// Everything is measured; these are the costs.
    Done(Box<Profile>),
    /// Measuring failed, and will not go on.
    Failed,
}
