//! The rows of a benchmark's table.

use serde::Serialize;

use crate::bench::Measured;

/// The policy that lets the server choose.
pub(super) const TESSERA: &str = "tessera";

/// Measurements of a policy under one load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// Name of the policy: `tessera`, or the plan that answers every request.
    pub(super) policy: String,
    /// Load as a multiple of the best plan's capacity.
    pub(super) load: f64,
    /// Rate of arrivals in requests per second.
    pub(super) rate: f64,
    /// Squared coefficient of variation of the times between requests; `None` for a trace.
    pub(super) cv2: Option<f64>,
    #[serde(flatten)]
    pub(super) measured: Measured,
}
