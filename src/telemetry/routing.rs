//! Metrics of the ways that tokens take inside modules.

use prometheus::{GaugeVec, IntCounterVec, Registry};

use super::makers::{NameAndHelp, counters, ratios};
use crate::runtime::Routing;

/// Most ways of a module with a label of their own; the others share the label `other`.
pub(super) const MAX_WAY_LABELS: usize = 64;

const TOKENS: NameAndHelp =
    NameAndHelp::new("tessera_runtime_routed_tokens_total", "Tokens that were routed, by module.");
const EXPERTS: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_expert_tokens_total",
    "Tokens that an expert of a module has seen.",
);
const IMBALANCE: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_expert_imbalance_ratio",
    "Tokens of a module's busiest expert over the mean of its experts, in the last batch.",
);
const SKIPPED: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_expert_skipped_ratio",
    "The share of a module's experts that tokens did not see, in the last batch.",
);
const FAILURES: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_router_failures_total",
    "Requests with a score that is not a number.",
);

/// Metrics of the ways that tokens take.
#[derive(Debug)]
pub(super) struct RoutingMetrics {
    tokens: IntCounterVec,
    experts: IntCounterVec,
    imbalance: GaugeVec,
    skipped: GaugeVec,
    failures: IntCounterVec,
}

impl RoutingMetrics {
    /// Creates the metrics and registers them in `registry`.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = &["family", "module"];
        Ok(Self {
            tokens: counters(registry, TOKENS, labels)?,
            experts: counters(registry, EXPERTS, &["family", "module", "expert"])?,
            imbalance: ratios(registry, IMBALANCE, labels)?,
            skipped: ratios(registry, SKIPPED, labels)?,
            failures: counters(registry, FAILURES, labels)?,
        })
    }

    /// Counts the tokens of a batch and the ways that they took.
    pub(super) fn routed(&self, labels: &[&str; 2], routing: &Routing) {
        let [family, module] = *labels;
        let mut taken = vec![0_u32; routing.num_ways];
        for sequence in routing.taken.chunks_exact(routing.num_ways.max(1)) {
            taken.iter_mut().zip(sequence).for_each(|(sum, count)| *sum += count);
        }
        for (way, count) in taken.iter().enumerate().filter(|(_, count)| **count > 0) {
            let label = if way < MAX_WAY_LABELS { way.to_string() } else { "other".to_owned() };
            let expert = self.experts.with_label_values(&[family, module, &label]);
            expert.inc_by(u64::from(*count));
        }
        let rows: u32 = routing.rows.iter().sum();
        self.tokens.with_label_values(labels).inc_by(u64::from(rows));
        let ways = f64::from(u32::try_from(routing.num_ways).unwrap_or(u32::MAX));
        let sum: f64 = taken.iter().copied().map(f64::from).sum();
        if sum > 0.0 {
            let busiest = taken.iter().copied().max().map_or(0.0, f64::from);
            self.imbalance.with_label_values(labels).set(busiest * ways / sum);
            self.skipped.with_label_values(labels).set(1.0 - sum / (f64::from(rows) * ways));
        }
    }

    /// Counts a request with a score that is not a number.
    pub(super) fn failed(&self, labels: &[&str; 2]) {
        self.failures.with_label_values(labels).inc();
    }
}
