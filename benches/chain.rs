//! What running a network as a chain of modules costs over running it as one session.
//!
//! `cargo bench --bench chain`. Both sides run in one process on one thread pool, in turns, so that
//! whatever else the machine does meets both alike. A process has one pool, so the program runs
//! itself again for every number of threads. `TESSERA_BENCH_ROUNDS` sets the number of turns.
//!
//! One row compares with a file as shipped. `l3`'s file goes on to pool its hidden states, and ONNX
//! Runtime computes that even where only the hidden states are asked for, so the other rows compare
//! with one session of the chain's own modules joined: the same network, neither more nor less.

#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::{
    fmt,
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ort::{
    session::{
        HasSelectedOutputs, OutputSelector, RunOptions, Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::{DynValue, Tensor},
};
use prost::Message;
use tessera::{
    assembly::Family,
    family::ModuleId,
    input::Encoding,
    module::{ATTENTION_MASK, INPUT_IDS},
    onnx::join,
    runtime::{Activation, Executor, Runtime, RuntimeConfig, SideInputs, find_library},
};

const THREADS: [usize; 2] = [1, 2];
const BATCHES: [usize; 2] = [1, 8];
const NUM_TOKENS: usize = 128;
const DEFAULT_ROUNDS: usize = 100;
const WARM_UP_ROUNDS: usize = 20;
const THREADS_VARIABLE: &str = "TESSERA_BENCH_THREADS";
const ROUNDS_VARIABLE: &str = "TESSERA_BENCH_ROUNDS";
/// Where ONNX Runtime finds the external data of models given as bytes.
const FOLDER_KEY: &str = "session.model_external_initializers_file_folder_path";

fn main() -> anyhow::Result<()> {
    match number(THREADS_VARIABLE)? {
        Some(num_threads) => measure_all(num_threads),
        None => run_for_each_number_of_threads(),
    }
}

fn run_for_each_number_of_threads() -> anyhow::Result<()> {
    print_machine();
    println!(
        "| network | one session of | threads | batch | chain, ms | one session, ms \
         | p50 ÷ p50 | chain ÷ one session | largest difference |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let program = std::env::current_exe()?;
    for num_threads in THREADS {
        let status = Command::new(&program)
            .env(THREADS_VARIABLE, num_threads.to_string())
            .status()
            .context("the program cannot run itself")?;
        ensure!(status.success(), "the run with {num_threads} threads failed");
    }
    Ok(())
}

fn print_machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let load = read("/proc/loadavg");
    println!(
        "{NUM_TOKENS} tokens, {} cores of {}, load average {}; p50 (p25 to p75); \
         chain ÷ one session is taken round by round\n",
        available_parallelism().map_or(0, usize::from),
        model.map_or("an unknown processor", |(_, model)| model.trim()),
        load.split(' ').next().unwrap_or("unknown"),
    );
}

/// Prints the rows of one number of threads.
fn measure_all(num_threads: usize) -> anyhow::Result<()> {
    let rounds = number(ROUNDS_VARIABLE)?.unwrap_or(DEFAULT_ROUNDS).max(1);
    let bench = Bench::start(num_threads)?;
    let mut executor = Executor::new(bench.runtime.clone(), bench.family.clone());
    for mut case in bench.cases()? {
        for batch in BATCHES {
            let inputs = encoding(batch);
            let difference = case.largest_difference(&mut executor, &inputs)?;
            ensure!(
                difference <= case.tolerance,
                "{} and {} differ by {difference:.1e}",
                case.network,
                case.counterpart
            );
            let [chain, single] = case.measure(&mut executor, &inputs, rounds)?;
            let ratios: Vec<f64> = chain.iter().zip(&single).map(|(a, b)| a / b).collect();
            let (chain, single) = (Quartiles::of(chain), Quartiles::of(single));
            let ratio = chain.median / single.median;
            println!(
                "| {} | {} | {num_threads} | {batch} | {chain} | {single} | {ratio:.3} | {} \
                 | {difference:.1e} |",
                case.network,
                case.counterpart,
                Quartiles::of(ratios),
            );
        }
    }
    Ok(())
}

/// The family, and the runtime on which both sides run.
struct Bench {
    runtime: Runtime,
    family: Arc<Family>,
}

impl Bench {
    fn start(num_threads: usize) -> anyhow::Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let given = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let library = find_library(None, given.as_deref(), std::slice::from_ref(&root))?;
        let runtime = Runtime::start(&RuntimeConfig {
            library,
            num_threads,
            spin: true,
            memory_limit: None,
        })?;
        let family = Arc::new(Family::load(&root.join("models/text"))?);
        Ok(Self { runtime, family })
    }

    fn cases(&self) -> anyhow::Result<[Case; 4]> {
        let l3 = self.encoder("l3", "")?;
        let l6 = [self.encoder("l6", "")?, vec![self.module("l6.head")?]].concat();
        let l6_int8 = [self.encoder("l6", ".int8")?, vec![self.module("l6.head")?]].concat();
        let tolerance = 1e-4;
        Ok([
            Case {
                network: "l3 to its last hidden states",
                counterpart: "the file as shipped",
                single: self.shipped("l3")?,
                path: l3.clone(),
                tolerance,
            },
            Case {
                network: "l3 to its last hidden states",
                counterpart: "modules joined",
                single: self.joined(&l3)?,
                path: l3,
                tolerance,
            },
            Case {
                network: "l6",
                counterpart: "modules joined",
                single: self.joined(&l6)?,
                path: l6,
                tolerance,
            },
            Case {
                network: "l6 in int8",
                counterpart: "modules joined",
                single: self.joined(&l6_int8)?,
                path: l6_int8,
                tolerance: 5e-3,
            },
        ])
    }

    /// Returns the stem and all blocks of `anchor`, the blocks in the variant with `suffix`.
    fn encoder(&self, anchor: &str, suffix: &str) -> anyhow::Result<Vec<ModuleId>> {
        let has = |block: &usize| self.module(&format!("{anchor}.block.{block}.attn")).is_ok();
        let mut path = vec![self.module(&format!("{anchor}.stem"))?];
        for block in (0..).take_while(has) {
            for part in ["attn", "mlp"] {
                path.push(self.module(&format!("{anchor}.block.{block}.{part}{suffix}"))?);
            }
        }
        Ok(path)
    }

    fn module(&self, name: &str) -> anyhow::Result<ModuleId> {
        let modules = self.family.graph.modules();
        let index = modules.iter().position(|module| module.name == name);
        index.map(ModuleId).with_context(|| format!("the family has no module `{name}`"))
    }

    /// Returns one session of the modules of `path`.
    fn joined(&self, path: &[ModuleId]) -> anyhow::Result<SingleSession> {
        let folder = &self.family.folder;
        let networks = path.iter().flat_map(|id| self.family.networks_of(*id));
        let networks = networks.map(|index| self.family.network(index));
        let models: Vec<_> =
            networks.map(|network| network.to_onnx(folder)).collect::<Result<_, _>>()?;
        let model = join(&models, &[INPUT_IDS, ATTENTION_MASK], &[]);
        let mut builder = self
            .builder()?
            .with_config_entry(FOLDER_KEY, folder.to_string_lossy())
            .map_err(ort::Error::<()>::from)?;
        SingleSession::new(builder.commit_from_memory(&model.encode_to_vec())?, None)
    }

    /// Returns one session of the file of `anchor`, asked for its last hidden states.
    fn shipped(&self, anchor: &str) -> anyhow::Result<SingleSession> {
        let source = self.family.manifest.anchors.get(anchor).and_then(|spec| spec.onnx.as_ref());
        let source = source.with_context(|| format!("`{anchor}` is no ONNX file"))?;
        let session = self.builder()?.commit_from_file(self.family.folder.join(&source.file))?;
        SingleSession::new(
            session,
            source.blocks.iter().flat_map(|block| block.tensors()).last().cloned(),
        )
    }

    fn builder(&self) -> anyhow::Result<SessionBuilder> {
        let builder = Session::builder(self.runtime.environment())?;
        Ok(builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(ort::Error::<()>::from)?)
    }
}

/// A network as a chain and as one session.
struct Case {
    network: &'static str,
    counterpart: &'static str,
    path: Vec<ModuleId>,
    single: SingleSession,
    tolerance: f32,
}

impl Case {
    fn largest_difference(
        &mut self,
        executor: &mut Executor,
        inputs: &Encoding,
    ) -> anyhow::Result<f32> {
        let sides = SideInputs::of_encoding(inputs.clone())?;
        let chain = run_chain(executor, &self.path, &sides)?.to_tensor()?;
        let single = self.single.run(&side_values(inputs)?)?;
        let (chain, (_, single)) =
            (chain.as_f32().context("f32")?, single.try_extract_tensor::<f32>()?);
        ensure!(chain.len() == single.len(), "{} and {} values", chain.len(), single.len());
        Ok(chain.iter().zip(single).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
    }

    /// Runs both in turns and returns the milliseconds of each, chain first.
    fn measure(
        &mut self,
        executor: &mut Executor,
        inputs: &Encoding,
        rounds: usize,
    ) -> anyhow::Result<[Vec<f64>; 2]> {
        let sides = SideInputs::of_encoding(inputs.clone())?;
        let values = side_values(inputs)?;
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..WARM_UP_ROUNDS + rounds {
            let (chain, output) = timed(|| run_chain(executor, &self.path, &sides));
            drop(output?);
            let (single, output) = timed(|| self.single.run(&values));
            drop(output?);
            if round >= WARM_UP_ROUNDS {
                times[0].push(chain.as_secs_f64() * 1e3);
                times[1].push(single.as_secs_f64() * 1e3);
            }
        }
        Ok(times)
    }
}

/// A session as anyone would make it.
struct SingleSession {
    session: Session,
    output: String,
    options: RunOptions<HasSelectedOutputs>,
}

impl SingleSession {
    /// Wraps `session`, which will be asked for `output`, or for the first where that is `None`.
    fn new(session: Session, output: Option<String>) -> anyhow::Result<Self> {
        let first = || session.outputs().first().map(|output| output.name().to_owned());
        let output = output.or_else(first).context("the network has no output")?;
        let selected = OutputSelector::no_default().with(&output);
        let options = RunOptions::new()?.with_outputs(selected);
        Ok(Self { session, output, options })
    }

    fn run(&mut self, values: &[(&'static str, DynValue)]) -> anyhow::Result<DynValue> {
        let inputs: Vec<_> = values.iter().map(|(name, value)| (*name, value)).collect();
        let mut outputs = self.session.run_with_options(inputs, &self.options)?;
        outputs.remove(&self.output).context("the output is missing")
    }
}

fn run_chain(
    executor: &mut Executor,
    path: &[ModuleId],
    sides: &SideInputs,
) -> anyhow::Result<Activation> {
    let mut state = None;
    for id in path {
        state = executor.step(*id, state, sides)?;
    }
    state.context("the path is empty")
}

fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let value = run();
    (start.elapsed(), value)
}

/// Texts without padding: \[CLS\], words spread over the vocabulary, \[SEP\].
fn encoding(batch: usize) -> Encoding {
    let id = |position: usize| match position % NUM_TOKENS {
        0 => 101,
        last if last == NUM_TOKENS - 1 => 102,
        _ => i64::try_from(2_000 + position * 7_919 % 25_000).unwrap_or_default(),
    };
    Encoding {
        batch,
        tokens: NUM_TOKENS,
        input_ids: (0..batch * NUM_TOKENS).map(id).collect(),
        attention_mask: vec![1; batch * NUM_TOKENS],
    }
}

fn side_values(inputs: &Encoding) -> anyhow::Result<Vec<(&'static str, DynValue)>> {
    let shape = [inputs.batch, inputs.tokens];
    let value = |values: &[i64]| Tensor::from_array((shape, values.to_vec())).map(Tensor::into_dyn);
    Ok(vec![
        (INPUT_IDS, value(&inputs.input_ids)?),
        (ATTENTION_MASK, value(&inputs.attention_mask)?),
    ])
}

/// Reads a number from the environment.
fn number(variable: &str) -> anyhow::Result<Option<usize>> {
    match std::env::var(variable) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{variable} is `{text}`"))?)),
        Err(_) => Ok(None),
    }
}

/// A median with its quartiles.
struct Quartiles {
    lower: f64,
    median: f64,
    upper: f64,
}

impl Quartiles {
    /// Sorts `values`, of which there is at least one.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
        Self { lower: at(1), median: at(2), upper: at(3) }
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.median, self.lower, self.upper)
    }
}
