//! The rows of a benchmark's table.

use serde::Serialize;

use crate::bench::Measured;

/// The policy that lets the server choose.
pub(super) const TESSERA: &str = "tessera";

/// The policy that knows all arrivals; it is computed, not measured.
pub(super) const ORACLE: &str = "oracle";

/// Measurements of a policy under one load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// Name of the policy: `tessera`, `oracle`, or the plan that answers every request.
    pub(super) policy: String,
    /// Load as a multiple of the best plan's capacity.
    pub(super) load: f64,
    /// Rate of arrivals in requests per second.
    pub(super) rate: f64,
    /// Kind of traffic.
    pub(super) traffic: String,
    /// Number of the round, from 1.
    pub(super) round: u32,
    #[serde(flatten)]
    pub(super) measured: Measured,
}
