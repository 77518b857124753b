//! The parts of a map, whatever its form.

use super::{ArchError, block::Expansion};
use crate::family::{Feature, MapSpec};

/// Parts of a map besides its weights.
#[derive(Debug)]
pub(super) struct MapParts<'a> {
    /// Entry of the map in the manifest.
    pub(super) map: &'a MapSpec,
    /// Shape of the space at the map's start, after the batch.
    pub(super) shape_in: &'a [Option<usize>],
    /// Shape of the space at the map's end, after the batch.
    pub(super) shape_out: &'a [Option<usize>],
    /// Width of the space at the map's start.
    pub(super) width_in: usize,
    /// Width of the space at the map's end.
    pub(super) width_out: usize,
    /// Expansion of the block that contains the map's start, or `None` if there is none.
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
