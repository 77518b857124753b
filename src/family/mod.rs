//! A family: the graph of activation spaces and modules, its plans and its manifest.
//!
//! Pure but for reading the manifest itself. It opens no weights and knows no runtime. Start at
//! [`FamilyGraph`]; a plan is a path in it, written as a [`PlanId`] such as `l3[0..1]>l6[2..6]`.

mod error;
mod graph;
mod manifest;
mod plan_id;

pub use error::FamilyError;
pub use graph::{FamilyGraph, Module, ModuleId, ModuleKind, Space, SpaceId, SpaceKind};
pub use manifest::{
    AnchorSpec, Feature, Limits, Manifest, MapForm, MapSpec, OnnxSource, OutputSpec, QualitySpec,
};
pub use plan_id::PlanId;
