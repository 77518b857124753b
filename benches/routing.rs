//! What routing costs: dense feed-forward parts against the same ones as experts, and dispatch and
//! combine alone.
//!
//! `cargo bench --bench routing [-- network …]`. All sides run in one process in turns, so that whatever else the
//! machine does meets them alike. A process has one thread pool, so the program runs itself again
//! for every number of threads. `TESSERA_BENCH_ROUNDS` sets the number of turns, and
//! `TESSERA_BENCH_EXPERTS` keeps one number of experts. Times are the tenth
//! percentile: on a machine that is shared the others measure what else runs there. The ideal is the
//! time that the experts' and the router's own products would take at the rate of the dense part's
//! two products alone, measured in the same turns; the dense part's own ideal is those two.

#![expect(clippy::print_stdout, reason = "the table is what the program is for")]
#![expect(clippy::cast_precision_loss, reason = "operations are counted approximately")]

#[path = "../tests/it/pool.rs"]
mod pool;

use std::{hint::black_box, path::PathBuf, process::Command, sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use pool::{Pool, text_manifest};
use tessera::{
    assembly::Family,
    family::{Manifest, ModuleId},
    fit::{Dataset, ExpertOptions, fit_experts},
    input::Encoding,
    module::{Order, Router},
    pool::FamilyWriter,
    runtime::{
        Activation, Executor, Runtime, RuntimeConfig, SideInputs, dispatch_and_combine,
        find_library,
    },
};

const NUM_TOKENS: usize = 128;
const THREADS: [usize; 2] = [1, 2];
const BATCHES: [usize; 2] = [1, 4];
const EXPERTS: [usize; 3] = [8, 16, 64];
/// The block whose feed-forward part is measured.
const BLOCK: usize = 1;
const DEFAULT_ROUNDS: usize = 60;
const WARM_UP_ROUNDS: usize = 5;
const THREADS_VARIABLE: &str = "TESSERA_BENCH_THREADS";
const ROUNDS_VARIABLE: &str = "TESSERA_BENCH_ROUNDS";
const EXPERTS_VARIABLE: &str = "TESSERA_BENCH_EXPERTS";

fn main() -> anyhow::Result<()> {
    if let Some(num_threads) = number(THREADS_VARIABLE)? {
        return measure_all(num_threads);
    }
    measure_dispatch()?;
    println!(
        "\n| network | threads | batch | experts | k | dense, ms | routed, ms \
         | dense ÷ routed | routed ÷ ideal | dense ÷ ideal | GFLOP/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for num_threads in THREADS {
        let status = Command::new(std::env::current_exe()?)
            .env(THREADS_VARIABLE, num_threads.to_string())
            .args(std::env::args().skip(1))
            .status()
            .context("the program cannot run itself")?;
        ensure!(status.success(), "the run with {num_threads} threads failed");
    }
    Ok(())
}

/// Prints what routing, gathering and adding up cost without any network.
fn measure_dispatch() -> anyhow::Result<()> {
    println!("| experts | k | width | route, gather and combine, µs per 1,000 tokens |");
    println!("|---|---|---|---|");
    let (num_rows, width, k) = (1_000, 768, 2);
    for num_experts in [8, 64] {
        let router = Router::new(num_experts, k, Order::SoftmaxThenTopK);
        let scores: Vec<f32> = (0..num_rows * num_experts).map(wave).collect();
        let rows: Vec<f32> = (0..num_rows * width).map(wave).collect();
        let mut times = Vec::new();
        for _ in 0..300 {
            let start = Instant::now();
            let sum = dispatch_and_combine(&router, &scores, &rows, width, |_, rows| rows);
            times.push(start.elapsed().as_secs_f64());
            black_box(sum).context("scores are numbers")?;
        }
        println!("| {num_experts} | {k} | {width} | {:.0} |", tenth(times) * 1e6);
    }
    Ok(())
}

/// Prints the rows of one number of threads.
fn measure_all(num_threads: usize) -> anyhow::Result<()> {
    let rounds = number(ROUNDS_VARIABLE)?.unwrap_or(DEFAULT_ROUNDS).max(1);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let library = find_library(None, given.as_deref(), std::slice::from_ref(&root))?;
    let config = RuntimeConfig { library, num_threads, spin: true, memory_limit: None };
    let runtime = Runtime::start(&config)?;
    let source = root.join("models/text");
    let names = || std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let is_wanted = |anchor: &str| names().count() == 0 || names().any(|name| name == anchor);
    for anchor in ["l6", "mpnet"].into_iter().filter(|anchor| is_wanted(anchor)) {
        if !source.join("anchors").join(anchor).join("model.safetensors").exists() {
            println!("{anchor} is not there; `make setup-full` fetches it");
            continue;
        }
        let pool = split(&runtime, &source, anchor)?;
        let family = Arc::new(Family::load(&pool.path())?);
        for batch in BATCHES {
            let mut bench = Bench::new(&runtime, &family, anchor, batch)?;
            if batch == BATCHES[0] {
                bench.load(anchor)?;
            }
            bench.measure((anchor, num_threads), rounds)?;
        }
    }
    Ok(())
}

/// Returns the numbers of experts that are measured.
fn nums_experts() -> anyhow::Result<Vec<usize>> {
    let wanted = number(EXPERTS_VARIABLE)?;
    Ok(EXPERTS.into_iter().filter(|count| wanted.is_none_or(|wanted| wanted == *count)).collect())
}

/// Splits one block of an anchor into each number of experts.
fn split(runtime: &Runtime, source: &std::path::Path, anchor: &str) -> anyhow::Result<Pool> {
    let entry = |num_experts: &usize| {
        let ks = [num_experts / 8, num_experts / 4, num_experts / 2, *num_experts];
        format!(
            "[[experts]]\nanchor = \"{anchor}\"\nnum_experts = {num_experts}\ntop_k = {ks:?}\n\
             router = \"average\"\nblocks = [{BLOCK}]\n"
        )
    };
    let experts: String = nums_experts()?.iter().map(entry).collect();
    let pool = Pool::new(source, &text_manifest(source, anchor)?, &experts)?;
    let file = pool.path().with_file_name("texts.jsonl");
    let line = |number| format!("{{\"id\": \"{number}\", \"text\": \"{}\"}}\n", words(number, 40));
    std::fs::write(&file, (0..320).map(line).collect::<String>())?;
    let data = Dataset::read(&file, None, &Manifest::read(&pool.path())?, None)?;
    let mut writer = FamilyWriter::begin(&pool.path())?;
    fit_experts(runtime, &mut writer, &data, &ExpertOptions::default(), &())?;
    Ok(pool)
}

fn words(start: usize, count: usize) -> String {
    const WORDS: [&str; 11] = [
        "server", "letter", "invoice", "garden", "late", "price", "of", "question", "the", "runs",
        "never",
    ];
    let word = |index: usize| WORDS[(start * 7 + index * index + index * 3) % WORDS.len()];
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// One block's feed-forward part in all its forms, and the hidden states that it reads.
struct Bench {
    executor: Executor,
    sides: SideInputs,
    state: Activation,
    dense: ModuleId,
    routed: Vec<(ModuleId, usize, usize)>,
    width: usize,
    num_rows: usize,
    product: product::Product,
}

impl Bench {
    fn new(
        runtime: &Runtime,
        family: &Arc<Family>,
        anchor: &str,
        batch: usize,
    ) -> anyhow::Result<Self> {
        let executor = Executor::new(runtime.clone(), family.clone());
        let graph = &family.graph;
        let named = |name: String| {
            let found = graph.modules().iter().position(|module| module.name == name);
            found.map(ModuleId).context(name)
        };
        let sides = SideInputs::of_encoding(encoding(family, anchor, batch)?)?;
        let mut state = executor.step(named(format!("{anchor}.stem"))?, None, &sides)?;
        for block in 0..=BLOCK {
            let name = format!("{anchor}.block.{block}");
            state = executor.step(named(format!("{name}.attn"))?, state, &sides)?;
            if block < BLOCK {
                state = executor.step(named(format!("{name}.mlp"))?, state, &sides)?;
            }
        }
        let name = format!("{anchor}.block.{BLOCK}.mlp");
        let mut routed = Vec::new();
        for num_experts in nums_experts()? {
            for k in [num_experts / 8, num_experts / 4, num_experts / 2, num_experts] {
                routed.push((named(format!("{name}.e{num_experts}k{k}"))?, num_experts, k));
            }
        }
        let state = state.context("hidden states")?;
        let width = state.to_tensor()?.shape()[2];
        let num_rows = batch * NUM_TOKENS;
        let product = product::Product::new(runtime, (num_rows, width))?;
        let dense = named(name)?;
        Ok(Self { executor, sides, state, dense, routed, width, num_rows, product })
    }

    /// Measures all forms in turns and prints a row for each.
    fn measure(&mut self, (anchor, threads): (&str, usize), rounds: usize) -> anyhow::Result<()> {
        let mut times = vec![Vec::new(); self.routed.len()];
        let (mut dense, mut product) = (Vec::new(), Vec::new());
        for round in 0..WARM_UP_ROUNDS + rounds {
            let is_warm = round >= WARM_UP_ROUNDS;
            let keep = |times: &mut Vec<f64>, time: f64| is_warm.then(|| times.push(time));
            keep(&mut product, self.product.time()?);
            keep(&mut dense, self.time(self.dense)?);
            for (index, times) in times.iter_mut().enumerate() {
                keep(times, self.time(self.routed[index].0)?);
            }
        }
        let (dense, product) = (tenth(dense), tenth(product));
        let whole = 16.0 * self.num_rows as f64 * (self.width * self.width) as f64;
        let rate = whole / product;
        for ((_, num_experts, k), times) in self.routed.iter().zip(times) {
            let routed = tenth(times);
            let router = 2.0 * (self.num_rows * self.width * num_experts) as f64;
            let ideal = (whole * *k as f64 / *num_experts as f64 + router) / rate;
            println!(
                "| {anchor} | {threads} | {} | {num_experts} | {k} | {:.3} | {:.3} \
                 | {:.2} | {:.2} | {:.2} | {:.0} |",
                self.num_rows / NUM_TOKENS,
                dense * 1e3,
                routed * 1e3,
                dense / routed,
                routed / ideal,
                dense / product,
                rate / 1e9,
            );
        }
        Ok(())
    }

    /// Prints how long the parts take to load, and what the process grows by.
    fn load(&mut self, anchor: &str) -> anyhow::Result<()> {
        let family = self.executor.family().clone();
        let all = self.routed.iter().filter(|(_, num_experts, k)| k == num_experts);
        let all = all.map(|(id, num_experts, _)| (*id, *num_experts));
        for (id, num_experts) in [(self.dense, 1)].into_iter().chain(all) {
            let (before, start) = (resident_bytes()?, Instant::now());
            self.executor.load(&[id])?;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{anchor}: {num_experts} experts load in {:.2} ms each, together {:.2} MB for \
                 {:.2} MB of weights",
                seconds * 1e3 / num_experts as f64,
                (resident_bytes()? - before) / 1e6,
                family.weight_bytes(id) as f64 / 1e6,
            );
        }
        Ok(())
    }

    fn time(&mut self, id: ModuleId) -> anyhow::Result<f64> {
        let start = Instant::now();
        black_box(self.executor.advance(id, Some(&self.state), &self.sides)?);
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Returns texts of [`NUM_TOKENS`] tokens.
fn encoding(family: &Family, anchor: &str, batch: usize) -> anyhow::Result<Encoding> {
    let tokenizer = family.tokenizer(anchor).context("a tokenizer")?;
    let texts: Vec<String> = (0..batch).map(|text| words(text, 2 * NUM_TOKENS)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let encoding = tokenizer.encode_up_to(&texts, NUM_TOKENS).map_err(anyhow::Error::msg)?;
    ensure!(encoding.tokens == NUM_TOKENS, "texts have {} tokens", encoding.tokens);
    Ok(encoding)
}

/// Returns what the process holds that is no file.
fn resident_bytes() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).context("RssAnon")?;
    Ok(kilobytes.trim().parse::<f64>()? * 1e3)
}

fn wave(index: usize) -> f32 {
    let fraction = (index % 100_003) as f32 * 0.618_034;
    (fraction - fraction.floor()) * 2.0 - 1.0
}

/// Returns the tenth percentile.
fn tenth(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 10).copied().unwrap_or_default()
}

fn number(variable: &str) -> anyhow::Result<Option<usize>> {
    let text = std::env::var(variable).ok();
    text.map(|text| text.parse().context(variable.to_owned())).transpose()
}

/// The two products of a dense part without anything else.
mod product {
    use std::time::Instant;

    use ort::{
        session::{Session, builder::GraphOptimizationLevel},
        value::Tensor,
    };
    use prost::Message;
    use tessera::{
        onnx::{GraphBuilder, proto::data_type},
        runtime::Runtime,
    };

    use super::wave;

    pub(super) struct Product {
        session: Session,
        input: Tensor<f32>,
    }

    fn session(runtime: &Runtime, model: &[u8]) -> ort::Result<Session> {
        let builder = Session::builder(runtime.environment())?;
        let mut builder = builder.with_optimization_level(GraphOptimizationLevel::All)?;
        builder.commit_from_memory(model)
    }

    impl Product {
        pub(super) fn new(
            runtime: &Runtime,
            (rows, width): (usize, usize),
        ) -> anyhow::Result<Self> {
            let mut graph = GraphBuilder::default();
            let [short, long] = [width, 4 * width].map(i64::try_from);
            let (short, long) = (short?, long?);
            let values: Vec<f32> = (0..4 * width * width).map(wave).collect();
            let input = graph.input("rows", data_type::FLOAT, &[None, Some(short)]);
            let first = graph.floats(vec![short, long], &values);
            let second = graph.floats(vec![long, short], &values);
            let expanded = graph.node("MatMul", &[&input, &first], &[]);
            let output = graph.node("MatMul", &[&expanded, &second], &[]);
            let model = graph.finish(&output, "output", &[None, Some(short)]);
            let session = session(runtime, &model.encode_to_vec())?;
            let values: Vec<f32> = (0..rows * width).map(wave).collect();
            let input = Tensor::from_array(([rows, width], values))?;
            Ok(Self { session, input })
        }

        pub(super) fn time(&mut self) -> anyhow::Result<f64> {
            let start = Instant::now();
            drop(self.session.run(ort::inputs!["rows" => &self.input])?);
            Ok(start.elapsed().as_secs_f64())
        }
    }
}
