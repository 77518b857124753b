//! Making families of metrics.

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
};

/// Name of a metric, and its help text.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameAndHelp {
    name: &'static str,
    help: &'static str,
}

impl NameAndHelp {
    /// Creates a name with its help text.
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help }
    }
}

/// Returns a registered family of counters.
pub(super) fn counters(
    registry: &Registry,
    NameAndHelp { name, help }: NameAndHelp,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

/// Returns a registered family of gauges of whole numbers.
pub(super) fn gauges(
    registry: &Registry,
    NameAndHelp { name, help }: NameAndHelp,
    label: &str,
) -> Result<IntGaugeVec, prometheus::Error> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

/// Returns a registered family of gauges of fractions.
pub(super) fn ratios(
    registry: &Registry,
    NameAndHelp { name, help }: NameAndHelp,
    labels: &[&str],
) -> Result<GaugeVec, prometheus::Error> {
    let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

/// Returns a registered family of histograms.
pub(super) fn histograms(
    registry: &Registry,
    NameAndHelp { name, help }: NameAndHelp,
    labels: &[&str],
    buckets: &[f64],
) -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let histograms = HistogramVec::new(options, labels)?;
    registry.register(Box::new(histograms.clone()))?;
    Ok(histograms)
}
