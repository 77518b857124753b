//! Prometheus metrics of a server.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder};

use super::{
    TelemetryError,
    generation::GenerationMetrics,
    makers::{NameAndHelp, counters, gauges, histograms, ratios},
    routing::RoutingMetrics,
};
use crate::{
    runtime::{Residency, Routing},
    serve::{ErrorCode, Observer, Outcome, Report, SequenceReport, StepChange},
};

/// Most plans of a family with a label of their own; the others share [`OTHER_PLANS`].
pub(super) const MAX_PLAN_LABELS: usize = 64;

/// Label of the plans beyond [`MAX_PLAN_LABELS`].
pub(super) const OTHER_PLANS: &str = "other";

/// Upper bounds of the buckets for request stages, in seconds.
const STAGE_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Upper bounds of the buckets for module run times, in seconds.
const MODULE_BUCKETS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// Upper bounds of the buckets for predicted ÷ measured latency; 1 is a perfect prediction.
const RATIO_BUCKETS: &[f64] =
    &[0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0];

/// Upper bounds of the buckets for batch sizes.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0];

const BUILD: NameAndHelp = NameAndHelp::new("tessera_build_info", "The version that runs.");
const ACCEPTED: NameAndHelp = NameAndHelp::new(
    "tessera_api_requests_accepted_total",
    "Inference requests that arrived; each ends once, also when its client goes.",
);
const REQUESTS: NameAndHelp =
    NameAndHelp::new("tessera_api_requests_total", "Inference requests that ended, by how.");
const STAGES: NameAndHelp = NameAndHelp::new(
    "tessera_serve_stage_duration_seconds",
    "Time of an answered request in each stage.",
);
const QUEUE_DEPTH: NameAndHelp =
    NameAndHelp::new("tessera_serve_queue_depth", "Requests that wait to be run.");
const PLANS: NameAndHelp =
    NameAndHelp::new("tessera_plan_chosen_total", "Answered requests by the plan that ran.");
const RATIO: NameAndHelp = NameAndHelp::new(
    "tessera_plan_prediction_ratio",
    "Predicted latency over the measured one, waiting left out.",
);
const VIOLATIONS: NameAndHelp = NameAndHelp::new(
    "tessera_plan_budget_violations_total",
    "Answered requests that took longer than their latency budget.",
);
const BATCHES: NameAndHelp = NameAndHelp::new(
    "tessera_serve_batch_size",
    "Texts or images that ran together, of one or more requests.",
);
const CORRECTION: NameAndHelp = NameAndHelp::new(
    "tessera_plan_correction_ratio",
    "What profiled latencies are multiplied by, learned from what requests took.",
);
const MODULE_CORRECTION: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_module_correction_ratio",
    "What a module's profiled latency is multiplied by, at the shape that it ran at last.",
);
const INFEASIBLE: NameAndHelp =
    NameAndHelp::new("tessera_plan_infeasible_total", "Requests whose budget no plan meets.");
const RESIDENT_BYTES: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_resident_bytes",
    "Bytes of loaded weights, without tables that are read in their files.",
);
const RESIDENT_MODULES: NameAndHelp =
    NameAndHelp::new("tessera_runtime_resident_modules", "Loaded modules.");
const MODULE_LOADS: NameAndHelp =
    NameAndHelp::new("tessera_runtime_module_loads_total", "How many times a module was loaded.");
const EVICTIONS: NameAndHelp = NameAndHelp::new(
    "tessera_runtime_module_evictions_total",
    "How many times a module gave way to another under the memory limit.",
);
const MODULES: NameAndHelp =
    NameAndHelp::new("tessera_runtime_module_duration_seconds", "Run time of each module.");

const CONNECTIONS: NameAndHelp = NameAndHelp::new("tessera_api_connections", "Open connections.");
const REFUSALS: NameAndHelp = NameAndHelp::new(
    "tessera_api_connections_refused_total",
    "Connections that were refused because there were too many.",
);

/// Metrics of requests, modules and connections, in a Prometheus registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    accepted: IntCounterVec,
    requests: IntCounterVec,
    stages: HistogramVec,
    queue_depth: IntGaugeVec,
    plans: IntCounterVec,
    labelled_plans: Mutex<HashMap<String, HashSet<String>>>,
    prediction_ratio: HistogramVec,
    budget_violations: IntCounterVec,
    infeasible: IntCounterVec,
    batches: HistogramVec,
    corrections: GaugeVec,
    module_corrections: GaugeVec,
    resident_bytes: IntGaugeVec,
    resident_modules: IntGaugeVec,
    module_loads: IntCounterVec,
    evictions: IntCounterVec,
    modules: HistogramVec,
    routing: RoutingMetrics,
    generation: GenerationMetrics,
    connections: IntGaugeVec,
    refused_connections: IntCounterVec,
}

impl Metrics {
    /// Creates all metrics at zero.
    ///
    /// # Errors
    ///
    /// Fails if two metrics share a name, or if a name breaks Prometheus's rules.
    pub fn new() -> Result<Self, TelemetryError> {
        let registry = Registry::new();
        let build = gauges(&registry, BUILD, "version")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self {
            accepted: counters(&registry, ACCEPTED, &["family"])?,
            requests: counters(&registry, REQUESTS, &["family", "code"])?,
            stages: histograms(&registry, STAGES, &["family", "stage"], STAGE_BUCKETS)?,
            queue_depth: gauges(&registry, QUEUE_DEPTH, "family")?,
            plans: counters(&registry, PLANS, &["family", "plan"])?,
            labelled_plans: Mutex::default(),
            prediction_ratio: histograms(&registry, RATIO, &["family"], RATIO_BUCKETS)?,
            budget_violations: counters(&registry, VIOLATIONS, &["family"])?,
            batches: histograms(&registry, BATCHES, &["family"], BATCH_BUCKETS)?,
            corrections: ratios(&registry, CORRECTION, &["family"])?,
            module_corrections: ratios(&registry, MODULE_CORRECTION, &["family", "module"])?,
            infeasible: counters(&registry, INFEASIBLE, &["family"])?,
            resident_bytes: gauges(&registry, RESIDENT_BYTES, "family")?,
            resident_modules: gauges(&registry, RESIDENT_MODULES, "family")?,
            module_loads: counters(&registry, MODULE_LOADS, &["family"])?,
            evictions: counters(&registry, EVICTIONS, &["family"])?,
            modules: histograms(&registry, MODULES, &["family", "module"], MODULE_BUCKETS)?,
            routing: RoutingMetrics::new(&registry)?,
            generation: GenerationMetrics::new(&registry)?,
            connections: gauges(&registry, CONNECTIONS, "protocol")?,
            refused_connections: counters(&registry, REFUSALS, &["protocol"])?,
            registry,
        })
    }

    /// Returns all metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be written");
            String::new()
        })
    }

    fn answered(&self, family: &str, report: &Report, latency_budget: Option<Duration>) {
        for (stage, time) in [
            ("preprocess", report.preprocess),
            ("queue", report.queue),
            ("compute", report.compute),
            ("total", report.latency),
        ] {
            self.stages.with_label_values(&[family, stage]).observe(time.as_secs_f64());
        }
        let plan = self.plan_label(family, &report.plan.plan);
        self.plans.with_label_values(&[family, plan]).inc();
        let measured = report.latency.saturating_sub(report.queue);
        if !measured.is_zero() {
            let ratio = report.plan.predicted_latency.div_duration_f64(measured);
            self.prediction_ratio.with_label_values(&[family]).observe(ratio);
        }
        if latency_budget.is_some_and(|budget| report.latency > budget) {
            self.budget_violations.with_label_values(&[family]).inc();
        }
    }

    /// Returns the label of `plan`. Clients can ask for very many plans, so labels are limited.
    fn plan_label<'a>(&self, family: &str, plan: &'a str) -> &'a str {
        let mut labelled = self.labelled_plans.lock().unwrap_or_else(PoisonError::into_inner);
        if !labelled.contains_key(family) {
            labelled.insert(family.to_owned(), HashSet::new());
        }
        let Some(plans) = labelled.get_mut(family) else {
            return OTHER_PLANS;
        };
        if plans.contains(plan) {
            return plan;
        }
        if plans.len() == MAX_PLAN_LABELS {
            return OTHER_PLANS;
        }
        plans.insert(plan.to_owned());
        plan
    }
}

impl Observer for Metrics {
    fn accepted(&self, family: &str) {
        self.accepted.with_label_values(&[family]).inc();
    }

    fn finished(&self, family: &str, outcome: &Outcome<'_>) {
        let code = match outcome {
            Outcome::Answered { report, latency_budget } => {
                self.answered(family, report, *latency_budget);
                "ok"
            }
            Outcome::Failed { code } => {
                if *code == ErrorCode::BudgetInfeasible {
                    self.infeasible.with_label_values(&[family]).inc();
                }
                code.name()
            }
        };
        self.requests.with_label_values(&[family, code]).inc();
    }

    fn batch_ran(&self, family: &str, rows: usize, correction: f64) {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        self.batches.with_label_values(&[family]).observe(f64::from(rows));
        self.corrections.with_label_values(&[family]).set(correction);
    }

    fn module_ran(&self, family: &str, module: &str, time: Duration) {
        self.modules.with_label_values(&[family, module]).observe(time.as_secs_f64());
    }

    fn module_corrected(&self, family: &str, module: &str, ratio: f64) {
        self.module_corrections.with_label_values(&[family, module]).set(ratio);
    }

    fn tokens_routed(&self, family: &str, module: &str, routing: &Routing) {
        self.routing.routed(&[family, module], routing);
    }

    fn router_failed(&self, family: &str, module: &str) {
        self.routing.failed(&[family, module]);
    }

    fn residency_changed(&self, family: &str, residency: &Residency) {
        let Residency { num_modules, weight_bytes, num_loads, num_evictions } = *residency;
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.resident_modules.with_label_values(&[family]).set(signed(num_modules));
        self.resident_bytes.with_label_values(&[family]).set(signed(weight_bytes));
        let loads = self.module_loads.with_label_values(&[family]);
        loads.inc_by(num_loads.saturating_sub(loads.get()));
        let evictions = self.evictions.with_label_values(&[family]);
        evictions.inc_by(num_evictions.saturating_sub(evictions.get()));
    }

    fn queue_changed(&self, family: &str, change: i64) {
        self.queue_depth.with_label_values(&[family]).add(change);
    }

    fn sequence_ended(&self, family: &str, sequence: &SequenceReport) {
        self.generation.ended(family, sequence);
    }

    fn step_ran(&self, family: &str, change: &StepChange) {
        self.generation.stepped(family, change);
    }

    fn connections_changed(&self, protocol: &str, change: i64) {
        self.connections.with_label_values(&[protocol]).add(change);
    }

    fn connection_refused(&self, protocol: &str) {
        self.refused_connections.with_label_values(&[protocol]).inc();
    }
}
