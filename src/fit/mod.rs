//! Offline work on a pool: profiling, fitting, evaluating, and computing the front of plans.
//!
//! This module serves no requests. [`measure_profile`] measures latencies. [`fit_maps`] fits
//! stitches, bridges and exits, and [`fit_experts`] fits experts. [`evaluate`] measures qualities.
//! [`plan_table`] builds the table that serving reads.

mod clusters;
mod corpus;
mod dataset;
mod disk;
mod error;
mod evaluate;
mod experts;
mod export;
mod front;
mod images;
mod import;
mod import_options;
mod imported;
mod independence;
mod maps;
mod measure;
mod offer_error;
mod probes;
mod profile;
mod quality;
mod recall;
mod ridge;
mod wave;
mod write;
mod writer;

pub use corpus::{Corpus, Text};
pub use dataset::Dataset;
pub use disk::{Disk, FileSystem};
pub use error::FitError;
pub use evaluate::{EvaluateOptions, Evaluation, evaluate, measure_qualities};
pub use experts::{ExpertOptions, Grouping, fit_experts};
pub use export::export_plan;
pub use front::{candidate_paths, costed_graph, entry, plan_table};
pub use images::ImageSet;
pub use import::{ImportReport, import};
pub use import_options::ImportOptions;
pub use maps::{FitOptions, fit_maps};
pub use measure::{ProfileOptions, measure_profile};
pub use offer_error::OfferError;
pub use profile::{MachineKey, ModuleProfile, Profile, ProfileCache};
pub use quality::{QualityRecords, losses_of};
pub use write::{today, write_atomically};
pub use writer::FamilyWriter;

/// Hears how far a long piece of work is.
pub trait Progress {
    /// Announces a phase of `length` steps.
    fn phase(&self, name: &str, length: u64);

    /// Reports that one more step is done.
    fn step(&self);

    /// Shows a message to the user.
    fn note(&self, message: &str);
}

/// Ignores all reports.
impl Progress for () {
    fn phase(&self, _name: &str, _length: u64) {}
    fn step(&self) {}
    fn note(&self, _message: &str) {}
}
