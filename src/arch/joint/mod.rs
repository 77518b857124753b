//! Modules that join anchors: stitches, bridges, exits and experts.

mod convolved;
pub(crate) mod experts;
pub(crate) mod fitted;
mod map;
pub(crate) mod merging;
pub(super) mod pooling;
pub(crate) mod trained;

pub(crate) use experts::SplitFile;
pub use experts::{SplitPart, split_file_name};
pub(crate) use map::MapParts;
