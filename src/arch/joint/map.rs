//! The parts of a map, whatever its form.

use crate::{
    arch::{backbone::Expansion, error::ArchError},
    family::{Feature, MapSpec},
};

/// Parts of a map besides its weights.
#[derive(Debug)]
pub(crate) struct MapParts<'a> {
    /// Entry of the map in the manifest.
    pub(crate) map: &'a MapSpec,
    /// Shape of the space at the map's start, after the batch.
    pub(crate) shape_in: &'a [Option<usize>],
    /// Shape of the space at the map's end, after the batch.
    pub(crate) shape_out: &'a [Option<usize>],
    /// Width of the space at the map's start.
    pub(crate) width_in: usize,
    /// Width of the space at the map's end.
    pub(crate) width_out: usize,
    /// Expansion of the block that contains the map's start, or `None` if there is none.
    pub(crate) expansion: Option<Expansion>,
}

/// Returns the error for a feature that a form cannot compute.
pub(crate) fn unsupported(map: &MapSpec, feature: Feature) -> ArchError {
    ArchError::Map {
        from: map.from.clone(),
        to: map.to.clone(),
        reason: format!("the feature `{}` does not go with this form", feature.name()),
    }
}
