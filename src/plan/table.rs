//! The plans of a family that are worth serving, with their costs by shape.
//!
//! The table is built once per family and profile and only read afterwards. The choice of one plan
//! for a budget is [`PlanTable::choose`].

use std::{collections::BTreeSet, fmt};

use super::{
    error::PlanError,
    grid::{Grid, Place},
    staircase::Staircase,
};

/// Where a quality comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QualitySource {
    /// Evaluated on a data set.
    Measured,
    /// Derived from the losses of the plan's modules.
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

/// How good the answers of a plan are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// The quality, in [0, 1].
    pub value: f64,
    /// Whether it was measured.
    pub source: QualitySource,
}

/// A plan and what it costs.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanEntry {
    /// Readable, stable id.
    pub id: String,
    /// Indices of the modules to run, in this order.
    pub modules: Vec<usize>,
    /// Predicted latency by batch and tokens.
    pub latency_seconds: Grid,
    /// Weights of all its modules.
    pub weight_bytes: u64,
    /// Peak activations by batch and tokens.
    pub activation_bytes: Grid,
    /// Quality of its answers.
    pub quality: Quality,
}

impl PlanEntry {
    /// Returns the predicted latency at a shape; batches beyond the grid run in chunks that add up.
    pub fn latency_seconds_at(&self, batch: usize, tokens: usize) -> f64 {
        self.latency_seconds.at(batch, tokens)
    }

    /// Returns the memory needed at a shape; of batches beyond the grid the largest chunk counts.
    pub fn memory_bytes_at(&self, batch: usize, tokens: usize) -> u64 {
        self.memory_bytes(self.activation_bytes.peak(batch, tokens))
    }

    /// Returns the memory needed with this peak of activations.
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

/// A shape to ask plans about, found on their grids once if all grids have the same axes.
pub(super) struct Shape {
    batch: usize,
    tokens: usize,
    place: Option<Place>,
}

impl Shape {
    pub(super) fn latency_seconds(&self, entry: &PlanEntry) -> f64 {
        let grid = &entry.latency_seconds;
        let place = &self.place;
        place.as_ref().map_or_else(|| grid.at(self.batch, self.tokens), |place| grid.sum_at(place))
    }

    pub(super) fn memory_bytes(&self, entry: &PlanEntry) -> u64 {
        let grid = &entry.activation_bytes;
        let place = &self.place;
        let activation_bytes = place
            .as_ref()
            .map_or_else(|| grid.peak(self.batch, self.tokens), |place| grid.peak_at(place));
        entry.memory_bytes(activation_bytes)
    }
}

/// The plans of a family by descending quality.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanTable {
    entries: Vec<PlanEntry>,
    margin: f64,
    /// Whether all grids of all plans have the same axes, as those of one profile do.
    has_equal_axes: bool,
}

impl PlanTable {
    /// Builds the table; a plan fits a latency budget if its predicted latency times (1 + margin)
    /// does.
    ///
    /// # Errors
    ///
    /// No plan, two plans of one id, a quality outside [0, 1], a margin that is negative or not
    /// finite.
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

    /// Returns the same plans with other latencies: what `latency` says of a plan's modules, or
    /// what it was where that is nothing or has other axes.
    #[must_use]
    pub fn with_latencies(&self, latency: impl Fn(&[usize]) -> Option<Grid>) -> Self {
        let mut table = self.clone();
        for entry in &mut table.entries {
            let found = latency(&entry.modules);
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

    /// Returns the plan of an id.
    pub fn find(&self, id: &str) -> Option<&PlanEntry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// Returns the part of a predicted latency that is added before it is compared to a budget.
    pub fn margin(&self) -> f64 {
        self.margin
    }

    /// Returns the plans that no other beats in latency, memory and quality at this shape, fastest
    /// first.
    ///
    /// Of plans that are equal in all three there is one.
    pub fn front(&self, batch: usize, tokens: usize) -> Vec<&PlanEntry> {
        let shape = self.shape(batch, tokens);
        let mut candidates: Vec<_> = self
            .entries
            .iter()
            .map(|entry| (shape.latency_seconds(entry), shape.memory_bytes(entry), entry))
            .collect();
        // Stable, so plans of equal latency and memory stay by descending quality.
        candidates.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
        let mut admitted = Staircase::default();
        candidates.retain(|(_, memory, entry)| admitted.admit(*memory, -entry.quality.value));
        candidates.into_iter().map(|(_, _, entry)| entry).collect()
    }

    pub(super) fn shape(&self, batch: usize, tokens: usize) -> Shape {
        let axes = &self.entries[0].latency_seconds;
        let place = self.has_equal_axes.then(|| axes.locate(batch, tokens));
        Shape { batch, tokens, place }
    }
}
