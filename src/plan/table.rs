//! The plans of a family that are worth serving, with their costs by shape.
//!
//! The table is built once per family and profile and is only read afterwards.
//! [`PlanTable::choose`] chooses a plan for a budget.

use std::{collections::BTreeSet, fmt};

use super::{
    definition::Plan,
    error::PlanError,
    grid::{Grid, Place},
    shape::Shape,
    staircase::Staircase,
};

/// Origin of a quality value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QualitySource {
    /// An evaluation on a data set.
    Measured,
    /// An estimate from the losses of the plan's modules.
    Predicted,
}

impl fmt::Display for QualitySource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Measured => "measured",
            Self::Predicted => "predicted",
        })
    }
}

/// Quality of a plan's answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// The quality, in [0, 1].
    pub value: f64,
    /// Origin of the value.
    pub source: QualitySource,
}

/// A plan with its costs and its quality.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanEntry {
    /// Readable, stable id.
    pub id: String,
    /// Plan that runs.
    pub plan: Plan,
    /// Predicted latency by batch and tokens, in seconds.
    pub latency_seconds: Grid,
    /// Bytes of the weights of all the plan's modules.
    pub weight_bytes: u64,
    /// Peak activations by batch and tokens, in bytes.
    pub activation_bytes: Grid,
    /// Quality of the plan's answers.
    pub quality: Quality,
}

impl PlanEntry {
    /// Returns the predicted latency at a shape, in seconds. Batches beyond the grid run in chunks,
    /// whose latencies add up.
    pub fn latency_seconds_at(&self, shape: Shape) -> f64 {
        self.latency_seconds.at(shape.batch, shape.tokens)
    }

    /// Returns the bytes of memory needed at a shape. Batches beyond the grid run in chunks, of
    /// which the largest counts.
    pub fn memory_bytes_at(&self, shape: Shape) -> u64 {
        self.memory_bytes(self.activation_bytes.peak(shape.batch, shape.tokens))
    }

    /// Returns the bytes of memory needed with a peak of `activation_bytes`.
    fn memory_bytes(&self, activation_bytes: f64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "grid values lie in [0, 1e18], and a part of a byte does not count"
        )]
        let activation_bytes = activation_bytes as u64;
        self.weight_bytes.saturating_add(activation_bytes)
    }
}

/// A shape at which plans are compared. If all grids have the same axes, its place is found only
/// once.
pub(super) struct ShapeAt {
    shape: Shape,
    place: Option<Place>,
}

impl ShapeAt {
    pub(super) fn latency_seconds(&self, entry: &PlanEntry) -> f64 {
        let grid = &entry.latency_seconds;
        let at = || grid.at(self.shape.batch, self.shape.tokens);
        self.place.as_ref().map_or_else(at, |place| grid.sum_at(place))
    }

    pub(super) fn memory_bytes(&self, entry: &PlanEntry) -> u64 {
        let grid = &entry.activation_bytes;
        let peak = || grid.peak(self.shape.batch, self.shape.tokens);
        let activation_bytes = self.place.as_ref().map_or_else(peak, |place| grid.peak_at(place));
        entry.memory_bytes(activation_bytes)
    }
}

/// The plans of a family by descending quality.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanTable {
    entries: Vec<PlanEntry>,
    margin: f64,
    /// Whether all grids of all plans have equal axes, as the grids of one profile do.
    has_equal_axes: bool,
}

impl PlanTable {
    /// Creates the table. A plan fits a latency budget if its predicted latency times (1 +
    /// `margin`) does.
    ///
    /// # Errors
    ///
    /// Fails when `entries` is empty or two plans share an id. Fails on a quality outside [0, 1]
    /// and on a margin that is negative or not finite.
    pub fn new(mut entries: Vec<PlanEntry>, margin: f64) -> Result<Self, PlanError> {
        if !(margin.is_finite() && margin >= 0.0) {
            return Err(PlanError::InvalidMargin { margin });
        }
        if entries.is_empty() {
            return Err(PlanError::EmptyTable);
        }
        let mut ids = BTreeSet::new();
        for PlanEntry { id, quality, .. } in &entries {
            if !(0.0..=1.0).contains(&quality.value) {
                return Err(PlanError::InvalidQuality { id: id.clone(), quality: quality.value });
            }
            if !ids.insert(id) {
                return Err(PlanError::DuplicatePlan { id: id.clone() });
            }
        }
        entries.sort_by(|left, right| {
            let by_quality = right.quality.value.total_cmp(&left.quality.value);
            let latencies = (left.latency_seconds.first(), right.latency_seconds.first());
            by_quality
                .then_with(|| latencies.0.total_cmp(&latencies.1))
                .then_with(|| left.id.cmp(&right.id))
        });
        let axes = &entries[0].latency_seconds;
        let has_equal_axes = entries.iter().all(|entry| {
            entry.latency_seconds.has_axes_of(axes) && entry.activation_bytes.has_axes_of(axes)
        });
        Ok(Self { entries, margin, has_equal_axes })
    }

    /// Returns the table with the latencies that `latency` returns for the plans. A plan
    /// keeps its latency if `latency` returns `None` or a grid with other axes.
    #[must_use]
    pub fn with_latencies(&self, latency: impl Fn(&Plan) -> Option<Grid>) -> Self {
        let mut table = self.clone();
        for entry in &mut table.entries {
            let found = latency(&entry.plan);
            if let Some(grid) = found.filter(|grid| grid.has_axes_of(&entry.latency_seconds)) {
                entry.latency_seconds = grid;
            }
        }
        table
    }

    /// Returns the plans by descending quality, then by latency at the smallest shape.
    pub fn entries(&self) -> &[PlanEntry] {
        &self.entries
    }

    /// Returns the plan with the id `id`, or `None` if it does not exist.
    pub fn find(&self, id: &str) -> Option<&PlanEntry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// Returns the fraction of a predicted latency that is added before the comparison with a
    /// budget.
    pub fn margin(&self) -> f64 {
        self.margin
    }

    /// Returns the plans that no other plan beats in latency, memory and quality at this shape,
    /// fastest first.
    ///
    /// Only one of several plans that are equal in all three is returned.
    pub fn front(&self, shape: Shape) -> Vec<&PlanEntry> {
        let shape = self.locate(shape);
        let mut candidates: Vec<_> = self
            .entries
            .iter()
            .map(|entry| (shape.latency_seconds(entry), shape.memory_bytes(entry), entry))
            .collect();
        // The sort is stable, so plans of equal latency and memory stay in order of descending
        // quality.
        candidates.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
        let mut admitted = Staircase::default();
        candidates.retain(|(_, memory, entry)| admitted.admit(*memory, -entry.quality.value));
        candidates.into_iter().map(|(_, _, entry)| entry).collect()
    }

    /// Returns the place of `shape` among the plans' costs.
    pub(super) fn locate(&self, shape: Shape) -> ShapeAt {
        let axes = &self.entries[0].latency_seconds;
        let place = self.has_equal_axes.then(|| axes.locate(shape.batch, shape.tokens));
        ShapeAt { shape, place }
    }
}
