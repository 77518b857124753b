//! The command line. Every option is a flag; most are an environment variable as well.

pub(super) mod bench;
pub(super) mod chat;
mod data;
mod family;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, builder::RangedU64ValueParser, value_parser};
use serde::Serialize;

use crate::{plan::Shape, telemetry::LogFormat, tensor::ByteSize};
use bench::BenchArguments;
use chat::ChatArguments;
pub(super) use data::DataArguments;
use family::FamilyArgument;

/// Longest time in seconds that an option may give; about thirty years.
const MAX_SECONDS: u64 = 1_000_000_000;

/// A model-assembly inference server: one family of modules, a sub-network per request budget.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Options of all commands.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  tessera serve --pool models
  tessera front --pool models --family text --tokens 128 --svg front.svg
  tessera plan --pool models --family text --latency-budget-ms 5
  tessera fit --pool models --family text --data calibration.jsonl";

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the families of a pool over HTTP and gRPC
    #[command(
        after_help = "Examples:\n  tessera serve --pool models --host 0.0.0.0 --port 8000\n  \
                            tessera serve --config deploy/tessera.toml --check-config"
    )]
    Serve(ServeArguments),
    /// Fit stitches, bridges and exits in closed form, from texts
    #[command(after_help = "Example:\n  tessera fit --family text --data calibration.jsonl")]
    Fit(FitArguments),
    /// Measure the cost of each module on this machine
    #[command(after_help = "Example:\n  tessera profile --family text --threads 2")]
    Profile(ProfileArguments),
    /// Measure the quality of plans, on texts or images that no fit has seen
    #[command(after_help = "Example:\n  tessera evaluate --family text --data heldout.jsonl")]
    Evaluate(EvaluateArguments),
    /// Show the plan that a budget gets
    #[command(after_help = "Example:\n  tessera plan --family text --latency-budget-ms 5")]
    Plan(PlanArguments),
    /// Show the Pareto front: the plans that no other beats
    #[command(after_help = "Example:\n  tessera front --family text --svg front.svg")]
    Front(FrontArguments),
    /// Show the modules of a family and the spaces that they join
    #[command(
        after_help = "Examples:\n  tessera inspect --family text\n  tessera inspect --family \
                            fashion --plan 's[0..2]>m[2..6]' --mermaid"
    )]
    Inspect(InspectArguments),
    /// Make a family from ONNX exports: find the cuts, check the pieces, propose stitches
    #[command(
        after_help = "Example:\n  tessera import --family animals small.onnx large.onnx --labels \
                            classes.txt"
    )]
    Import(ImportArguments),
    /// Put a load on a running server; requests arrive whether or not the last one is answered
    #[command(
        after_help = "Examples:\n  tessera bench --family fashion --budgets-ms 25\n  tessera bench \
                            --family fashion --cv2 1,4,8 --seconds 20 --json load.json --svg \
                            load.svg\n  tessera bench --family text --trace arrivals.txt\n  \
                            tessera bench --family text --budgets-ms 100 --traffic bursts,flood \
                            --all-plans --rounds 3"
    )]
    Bench(BenchArguments),
    /// Chat with a model of a running server in the terminal
    #[command(
        after_help = "Examples:\n  tessera chat 'What is the capital of France?'\n  tessera chat \
                            --temperature 0 --system 'Answer in one word.'"
    )]
    Chat(ChatArguments),
    /// Write a plan's sub-network as one ONNX file that needs nothing else
    #[command(
        after_help = "Examples:\n  tessera export --family text --plan 'l6[0..3]' -o a.onnx\n  \
                            tessera export --family text --latency-budget-ms 5 -o b.onnx"
    )]
    Export(ExportArguments),
    /// Bring the manifests of families up to date with this version
    #[command(
        after_help = "Examples:\n  tessera migrate --pool models\n  tessera migrate --family text \
                            --dry-run"
    )]
    Migrate(MigrateArguments),
}

/// Options of all commands.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Common {
    /// File with options (TOML); the environment and flags take precedence
    #[arg(long, global = true, env = "TESSERA_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Folder of families
    #[arg(long, global = true, env = "TESSERA_POOL", default_value = "models")]
    pub pool: PathBuf,
    /// ONNX Runtime's shared library [default: ORT_DYLIB_PATH, then what `make setup` fetched, then
    /// the system's]
    #[arg(long, global = true, env = "TESSERA_ONNXRUNTIME")]
    pub onnxruntime: Option<PathBuf>,
    /// Threads for inference; 0 for one per core
    #[arg(long, global = true, env = "TESSERA_THREADS", default_value_t = 0)]
    pub threads: usize,
    /// Let idle inference threads sleep at once: less processor time, slower answers
    #[arg(long, global = true, env = "TESSERA_NO_SPIN")]
    pub no_spin: bool,
    /// Memory that the process may hold, such as 512MiB, or 0 for no limit; modules that were not
    /// used for longest are evicted [default: 85 % of the control group's limit, if it has one]
    #[arg(long, global = true, env = "TESSERA_MEMORY_LIMIT")]
    pub memory_limit: Option<ByteSize>,
    /// Folder for this machine's profiles [default: $XDG_CACHE_HOME/tessera or ~/.cache/tessera]
    #[arg(long, global = true, env = "TESSERA_CACHE")]
    pub cache: Option<PathBuf>,
    /// Filter of log lines, such as `info` or `tessera=debug`
    #[arg(long, global = true, env = "TESSERA_LOG", default_value = "info")]
    pub log: String,
    /// Format of log lines: `text` or `json`
    #[arg(long, global = true, env = "TESSERA_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Options of `serve`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct ServeArguments {
    /// Check options and pool, print the options in effect, and stop
    #[arg(long)]
    #[serde(skip)]
    pub check_config: bool,
    /// Address to listen on
    #[arg(long, env = "TESSERA_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// HTTP port
    #[arg(long, env = "TESSERA_PORT", default_value_t = 8000)]
    pub port: u16,
    /// gRPC port
    #[arg(long, env = "TESSERA_GRPC_PORT", default_value_t = 8001)]
    pub grpc_port: u16,
    /// Serve HTTP alone
    #[arg(long, env = "TESSERA_NO_GRPC")]
    pub no_grpc: bool,
    /// File of clients with their tokens (TOML); SIGHUP reads it again [default: everybody may ask]
    #[arg(long, env = "TESSERA_CLIENTS")]
    pub clients: Option<PathBuf>,
    /// File of costs from other machines, for families that were never measured on this one
    /// [default: profile.json in the pool, if it is there]
    #[arg(long, env = "TESSERA_PROFILE")]
    pub profile: Option<PathBuf>,
    /// Largest request body or message
    #[arg(long, env = "TESSERA_MAX_BODY", default_value = "16MiB")]
    pub max_body: ByteSize,
    /// Batches that run at the same time, each with sessions of its own
    #[arg(long, env = "TESSERA_WORKERS", default_value_t = 1)]
    pub workers: usize,
    /// Most requests that wait for inference
    #[arg(long, env = "TESSERA_QUEUE_LIMIT", default_value_t = 256)]
    pub queue_limit: usize,
    /// Seconds between scans of the pool's folder for new, changed and removed families; 0 for
    /// never
    #[arg(long, env = "TESSERA_POLL_POOL", value_parser = seconds(), default_value_t = 0)]
    pub poll_pool: u64,
    /// Modules that are never evicted under the memory limit: FAMILY/ANCHOR, FAMILY/MODULE or
    /// FAMILY/*; repeat it, or separate them by commas
    #[arg(long, env = "TESSERA_PIN", value_delimiter = ',')]
    pub pin: Vec<String>,
    /// End with an error if no family loads; with `=false`, serve on, for families that are loaded
    /// later
    #[arg(
        long,
        env = "TESSERA_EXIT_ON_ERROR",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value_t = true
    )]
    pub exit_on_error: bool,
    /// Load modules when a request first needs them, not ahead of it
    #[arg(long, env = "TESSERA_NO_PRELOAD")]
    pub no_preload: bool,
    /// Seconds after which a request is given up; one for text, if it has no token by then
    #[arg(long, env = "TESSERA_REQUEST_TIMEOUT", value_parser = seconds(), default_value_t = 30)]
    pub request_timeout: u64,
    /// OpenTelemetry collector to send spans to over gRPC, such as http://localhost:4317
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Options of connections.
    #[command(flatten)]
    #[serde(flatten)]
    pub connections: ConnectionArguments,
    /// Fraction of a latency budget that is kept as a margin against noise
    #[arg(long, env = "TESSERA_LATENCY_MARGIN", default_value_t = 0.1)]
    pub latency_margin: f64,
    /// Let prompts begin with what other clients' prompts left in caches; off, since a client could
    /// find out by the time to a first token what others asked
    #[arg(long, env = "TESSERA_SHARE_PREFIXES")]
    pub share_prefixes: bool,
}

/// Options and limits of connections.
#[derive(Debug, Clone, Args, Serialize)]
pub struct ConnectionArguments {
    /// Server's certificate and those that lead to a known authority (PEM), for both ports; SIGHUP
    /// reads it again [default: no encryption]
    #[arg(long, env = "TESSERA_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, env = "TESSERA_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities for clients' certificates (PEM): clients without one are refused
    #[arg(long, env = "TESSERA_TLS_CLIENT_CA", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Most connections at once; the next ones are answered 503
    #[arg(long, env = "TESSERA_MAX_CONNECTIONS", default_value_t = 4096)]
    pub max_connections: u32,
    /// Most requests at once on one HTTP/2 connection
    #[arg(long, env = "TESSERA_MAX_STREAMS", default_value_t = 128)]
    pub max_streams: u32,
    /// Seconds until the head of a connection's first request must be there
    #[arg(long, env = "TESSERA_HEADER_TIMEOUT", value_parser = seconds(), default_value_t = 10)]
    pub header_timeout: u64,
    /// Seconds for which a connection may stay open without a request, and a stream without a
    /// message
    #[arg(long, env = "TESSERA_IDLE_TIMEOUT", value_parser = seconds(), default_value_t = 300)]
    pub idle_timeout: u64,
    /// Seconds for which an answer may wait for its client to take 16 KiB more of it, or the rest;
    /// then the connection is closed [default: as --request-timeout]
    #[arg(long, env = "TESSERA_WRITE_TIMEOUT", value_parser = seconds())]
    pub write_timeout: Option<u64>,
    /// Seconds that requests under way have to finish when the server is told to stop
    #[arg(long, env = "TESSERA_DRAIN_TIMEOUT", value_parser = seconds(), default_value_t = 30)]
    pub drain_timeout: u64,
}

/// Options of `fit`.
#[derive(Debug, Args)]
pub struct FitArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// The texts or images.
    #[command(flatten)]
    pub source: DataArguments,
    /// Ridges to try, relative to the mean of the features' squares; held-out texts choose
    #[arg(long, value_delimiter = ',', default_value = "1e-4,1e-3,1e-2,1e-1,1")]
    pub regularizations: Vec<f64>,
    /// Tokens after which texts are cut
    #[arg(long, default_value_t = 128)]
    pub max_tokens: usize,
    /// Most texts for maps that see every token
    #[arg(long, default_value_t = 1_500)]
    pub token_texts: usize,
    /// Split feed-forward parts among experts, as the manifest's `[[experts]]` say, instead of
    /// fitting maps
    #[arg(long)]
    pub experts: bool,
    /// Fit maps and experts again that are already fitted
    #[arg(long)]
    pub refit: bool,
}

/// Options of `profile`.
#[derive(Debug, Args)]
pub struct ProfileArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// Measure again the modules that the cache holds; the cache stays until all are measured
    #[arg(long)]
    pub again: bool,
    /// File to which the costs are added, for machines on which the family was never measured
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Options of `evaluate`.
#[derive(Debug, Args)]
pub struct EvaluateArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// The texts or images.
    #[command(flatten)]
    pub source: DataArguments,
    /// Tokens after which texts are cut
    #[arg(long, default_value_t = 128)]
    pub max_tokens: usize,
    /// Most plans measured in one round
    #[arg(long, default_value_t = 40)]
    pub plans: usize,
    /// Most rounds after the first
    #[arg(long, default_value_t = 4)]
    pub rounds: usize,
    /// Forget earlier measurements, once everything is measured again
    #[arg(long)]
    pub again: bool,
    /// Measure the plans of the family's front alone and write what they have on these texts or
    /// images to this file (JSON); the family keeps its own figures
    #[arg(long, conflicts_with = "again")]
    pub report: Option<PathBuf>,
    /// Plan to report in place of the front's; repeat it
    #[arg(long = "plan", requires = "report")]
    pub reported: Vec<String>,
}

/// The shape of a request.
#[derive(Debug, Clone, Copy, Args)]
pub struct ShapeArguments {
    /// Sequences in the request
    #[arg(long, default_value_t = Shape::default().batch)]
    pub batch: usize,
    /// Tokens of its longest sequence
    #[arg(long, default_value_t = Shape::default().tokens)]
    pub tokens: usize,
}

impl ShapeArguments {
    /// Returns the shape.
    pub fn shape(self) -> Shape {
        Shape::new(self.batch, self.tokens)
    }
}

/// Options of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArguments {
    /// The family [default: all families of the pool]
    #[arg(long)]
    pub family: Option<String>,
    /// Say what would be changed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// The shape of the request.
    #[command(flatten)]
    pub shape: ShapeArguments,
    /// Latency budget in milliseconds
    #[arg(long)]
    pub latency_budget_ms: Option<f64>,
    /// Memory budget in megabytes of 10⁶ bytes
    #[arg(long)]
    pub memory_budget_mb: Option<f64>,
    /// Least quality, 0 to 1
    #[arg(long)]
    pub min_quality: Option<f64>,
    /// Id of a plan whose cost is shown
    #[arg(long)]
    pub plan: Option<String>,
}

/// Options of `front`.
#[derive(Debug, Args)]
pub struct FrontArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// The shape of the request.
    #[command(flatten)]
    pub shape: ShapeArguments,
    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write a picture to this file
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Leave out plans whose quality is only predicted
    #[arg(long)]
    pub measured: bool,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// Only the modules of this plan
    #[arg(long)]
    pub plan: Option<String>,
    /// Write JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write a Graphviz graph instead of a table
    #[arg(long, conflicts_with = "json")]
    pub dot: bool,
    /// Write a Mermaid flowchart instead of a table
    #[arg(long, conflicts_with_all = ["json", "dot"])]
    pub mermaid: bool,
}

/// Options of `import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// Name of the new family, a folder of the pool
    #[arg(long)]
    pub family: String,
    /// ONNX exports of image networks, the cheapest first
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Tensor to cut an export at, as ANCHOR=TENSOR; repeat it, in order, for all cuts of an anchor
    #[arg(long = "cut")]
    pub cuts: Vec<String>,
    /// File with the name of a class on each line
    #[arg(long)]
    pub labels: Option<PathBuf>,
    /// Hugging Face's preprocessor_config.json [default: as for ImageNet]
    #[arg(long)]
    pub preprocessor: Option<PathBuf>,
    /// SPDX licence of the weights
    #[arg(long, default_value = "unknown")]
    pub license: String,
    /// Run one image at a time: for exports that mix the images of a batch, as dynamically
    /// quantized ones do, and for those made for a batch of one
    #[arg(long)]
    pub one_by_one: bool,
}

/// Options of `export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The family.
    #[command(flatten)]
    pub family: FamilyArgument,
    /// Plan to export; without it, the budget chooses
    #[arg(long)]
    pub plan: Option<String>,
    /// The shape of the requests that the budget is for.
    #[command(flatten)]
    pub shape: ShapeArguments,
    /// Latency budget in milliseconds
    #[arg(long)]
    pub latency_budget_ms: Option<f64>,
    /// Memory budget in megabytes of 10⁶ bytes
    #[arg(long)]
    pub memory_budget_mb: Option<f64>,
    /// Least quality, 0 to 1
    #[arg(long)]
    pub min_quality: Option<f64>,
    /// File to write
    #[arg(long, short)]
    pub output: PathBuf,
}

/// Returns a parser of seconds that refuses more than [`MAX_SECONDS`], which clocks could not add.
fn seconds() -> RangedU64ValueParser {
    value_parser!(u64).range(..=MAX_SECONDS)
}
