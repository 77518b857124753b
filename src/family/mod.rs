//! A family: the graph of activation spaces and modules, its plans and its manifest.
//!
//! The room is pure except that it reads the manifest. It does not open weights and does not know
//! the runtime. Start at [`FamilyGraph`]. A plan is a path in it, written as a [`PlanId`] such as
//! `l3[0..1]>l6[2..6]`.

mod error;
mod fault;
mod files;
#[cfg(test)]
mod fuzz_tests;
mod graph;
mod manifest;
mod plan_id;
mod space;

pub use crate::plan::ModuleId;
pub use error::FamilyError;
pub use fault::Fault;
pub use files::{FITS_FOLDER, MANIFEST_FILE, name_with_digest, name_without_digest};
pub(crate) use graph::{F32, INT8, SKIP};
pub use graph::{FamilyGraph, Module, ModuleKind, SpaceId};
pub use manifest::{
    AnchorSpec, BlockEnds, CacheType, ExitsSpec, ExpertSet, ExpertsSpec, FORMAT, Feature, Filter,
    GenerationSpec, ImageSpec, Limits, Manifest, MapForm, MapSpec, MergeSpec, Metric, OnnxImage,
    OnnxSource, OutputSpec, PartSource, QualitySpec, Resize, RoutedPart, RouterForm, StitchesSpec,
    VariantSpec, WidthSpec, fit_file_name, migrated,
};
pub use plan_id::PlanId;
pub use space::{Axis, NamedTensor, Passed, Space, SpaceKind, SpaceSpec};
