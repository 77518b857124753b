//! Options of `bench`.

use std::path::PathBuf;

use clap::Args;

use super::family::FamilyArgument;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// URL of the server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Latency budgets in milliseconds, taken in turn
    #[arg(long, value_delimiter = ',', default_value = "25")]
    pub budgets_ms: Vec<f64>,
    /// Loads, as multiples of the rate that the best plan of the front can answer
    #[arg(long, value_delimiter = ',', default_value = "0.5,1,2,4")]
    pub loads: Vec<f64>,
    /// Requests per second that the best plan can answer [default: measured]
    #[arg(long)]
    pub capacity: Option<f64>,
    /// Squared coefficients of variation of the times between requests: 1 is a Poisson process,
    /// more is burstier
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub cv2: Vec<f64>,
    /// File of arrival times, one per line in seconds, replayed instead of made-up arrivals
    #[arg(long, conflicts_with = "cv2")]
    pub trace: Option<PathBuf>,
    /// Length of each load in seconds
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds at the beginning of each load that are not counted
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Number of plans along the front that are each measured as the only plan
    #[arg(long, default_value_t = 5)]
    pub fixed: usize,
    /// Plan to measure as the only one, in place of plans along the front; repeat it
    #[arg(long = "plan")]
    pub plans: Vec<String>,
    /// Seed of the arrivals
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write all measurements to this file (JSON)
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write a picture to this file: attainment and quality over load
    #[arg(long)]
    pub svg: Option<PathBuf>,
}
