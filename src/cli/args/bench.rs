//! Options of `bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::family::FamilyArgument;

/// Arrivals and lengths of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Traffic {
    /// The same rate all the time, as bursty as `--cv2` says
    Steady,
    /// Half a second of every four at four times the mean rate
    Bursts,
    /// A day in one load: from nothing to twice the mean rate, and back
    Day,
    /// One client sends half of all requests in a twelfth of the time, at 6.5 times the mean rate
    Flood,
    /// Texts of heavy-tailed lengths, at the same rate all the time
    Lengths,
}

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
    /// Kinds of traffic, each under every load
    #[arg(long, value_enum, value_delimiter = ',', default_value = "steady")]
    pub traffic: Vec<Traffic>,
    /// File of arrival times, one per line in seconds, replayed instead of made-up arrivals
    #[arg(long, conflicts_with_all = ["cv2", "traffic"])]
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
    /// Measure every plan of the front as the only plan, to find the best one for each load
    #[arg(long, conflicts_with_all = ["fixed", "plans"])]
    pub all_plans: bool,
    /// Times that every load is repeated, with the same arrivals; plans that cannot be the best
    /// fixed one are measured once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
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
