//! Offline work on a pool: profiling, fitting, evaluating, and computing the front of plans.
//!
//! This module serves no requests. [`measure_profile`] measures latencies. [`fit_maps`] fits
//! stitches, bridges and exits, and [`fit_experts`] fits experts. [`evaluate`] measures qualities.

mod data;
mod error;
mod estimate;
mod evaluate;
mod experts;
mod export;
#[cfg(test)]
mod fuzz_tests;
mod idle;
mod import;
mod independence;
mod maps;
mod measure;
mod probes;
mod ridge;
mod wave;

pub use data::{Corpus, Dataset, ImageSet, Text};
pub use error::FitError;
pub use estimate::estimate_profile;
pub use evaluate::{EvaluateOptions, Evaluation, check_corpora, evaluate, report};
pub use experts::{ExpertOptions, Grouping, fit_experts};
pub use export::export_plan;
pub use idle::IdleMeasuring;
pub use import::{ImportOptions, ImportReport, import};
pub use maps::{FitOptions, fit_maps};
pub use measure::{ProfileOptions, measure_profile};

/// Hears how far a long piece of work is.
pub trait Progress {
    /// Announces a phase of `length` steps.
    fn phase(&self, name: &str, length: u64);

    /// Reports that one more step is done.
    fn step(&self);

    /// Shows a message to the user.
    fn note(&self, message: &str);

    /// Returns whether the work should stop, which is asked between any two runs of a network.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Does nothing while the work goes on.
    ///
    /// # Errors
    ///
    /// Fails with [`FitError::Stopped`] when the work should stop.
    fn go_on(&self) -> Result<(), FitError> {
        if self.is_stopped() { Err(FitError::Stopped) } else { Ok(()) }
    }
}

/// Returns whether the step `done` of `length` ends a tenth of them, which is worth a line.
pub fn ends_a_tenth(done: u64, length: u64) -> bool {
    let tenth = |done: u64| (10 * done).checked_div(length).unwrap_or(0);
    tenth(done) > tenth(done.saturating_sub(1))
}

/// Ignores all reports.
impl Progress for () {
    fn phase(&self, _name: &str, _length: u64) {}
    fn step(&self) {}
    fn note(&self, _message: &str) {}
}
