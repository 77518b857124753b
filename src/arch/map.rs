//! The parts of a map, whatever its form.

use super::{ArchError, block::Expansion};
use crate::family::{Feature, MapSpec};

/// What a map is built of besides its weights.
#[derive(Debug)]
pub(super) struct MapParts<'a> {
    /// The manifest's entry.
    pub(super) map: &'a MapSpec,
    /// The shape of the space it starts in, after the batch.
    pub(super) shape_in: &'a [Option<usize>],
    /// The shape of the space it ends in, after the batch.
    pub(super) shape_out: &'a [Option<usize>],
    /// The width of the space it starts in.
    pub(super) width_in: usize,
    /// The width of the space it ends in.
    pub(super) width_out: usize,
    /// The expansion of the block it starts in, where its form needs one.
    pub(super) expansion: Option<Expansion>,
}

/// Returns the error for a feature that a form cannot compute.
pub(super) fn unsupported(map: &MapSpec, feature: Feature) -> ArchError {
    ArchError::Map {
        from: map.from.clone(),
        to: map.to.clone(),
        reason: format!("the feature `{}` does not go with this form", feature.name()),
    }
}
