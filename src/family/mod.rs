//! A family: the graph of activation spaces and modules, its plans and its manifest.
//!
//! The room is pure except that it reads the manifest. It does not open weights and does not know
//! the runtime. Start at [`FamilyGraph`]. A plan is a path in it, written as a [`PlanId`] such as
//! `l3[0..1]>l6[2..6]`.

mod error;
mod experts;
mod files;
#[cfg(test)]
mod fuzz_tests;
mod graph;
mod image;
mod manifest;
mod maps;
mod onnx_source;
mod plan_id;
mod trained;

pub use error::FamilyError;
pub use experts::{ExpertSet, ExpertsSpec, RoutedPart, RouterForm};
pub use files::{FITS_FOLDER, MANIFEST_FILE, name_with_digest, name_without_digest};
pub use graph::{FamilyGraph, Module, ModuleId, ModuleKind, Space, SpaceId, SpaceKind};
pub use image::{Filter, ImageSpec, Resize};
pub use manifest::{
    AnchorSpec, Limits, Manifest, Metric, OutputSpec, PartSource, QualitySpec, WidthSpec,
};
pub use maps::{Feature, MapForm, MapSpec, fit_file_name};
pub use onnx_source::{BlockEnds, OnnxImage, OnnxSource};
pub use plan_id::PlanId;
pub use trained::{ExitsSpec, StitchesSpec};
