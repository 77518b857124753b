//! What is left of a network's quality when its tokens take some of the experts of its feed-forward
//! parts: groups at random, by k-means, with average or learned routers, and with the best router
//! that there could be.
//!
//! `cargo bench --bench experts -- l6 [block …]` prints recall@10 on held-out mails (`make data`),
//! `cargo bench --bench experts -- fashion` accuracy on test images. `TESSERA_BENCH_EXAMPLES` sets
//! how many, `TESSERA_BENCH_EXPERTS` the number of experts, and `TESSERA_BENCH_CASES` keeps the rows
//! whose name holds it, such as `k-means/learned/nothing`. With `blocks` behind the network's name
//! each block is split alone as well. The row `time` is what the feed-forward parts of all blocks
//! take for the longest text, or for 16 images, on one thread, as a share of what dense ones take:
//! tenth percentiles in turns. `TESSERA_BENCH_THREADS` sets another number of threads.

#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

#[path = "../tests/it/pool.rs"]
mod pool;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use pool::{Pool, text_manifest};
use tessera::{
    assembly::Family,
    family::{FamilyGraph, Manifest, ModuleId, ModuleKind, PlanId},
    fit::{Dataset, EvaluateOptions, ExpertOptions, Grouping, fit_experts, report},
    pool::FamilyWriter,
    runtime::{Executor, ModuleObserver, Runtime, RuntimeConfig, SideInputs, find_library},
};

/// How often each plan is timed.
const TURNS: usize = 40;

/// Groups, router, and whether what is left out is replaced by its mean.
type Case = (Grouping, &'static str, bool);

/// What is compared.
const CASES: [Case; 8] = [
    (Grouping::Random, "average", true),
    (Grouping::Clusters, "average", true),
    (Grouping::Clusters, "learned", true),
    (Grouping::Clusters, "oracle", true),
    (Grouping::Random, "average", false),
    (Grouping::Clusters, "average", false),
    (Grouping::Clusters, "learned", false),
    (Grouping::Clusters, "oracle", false),
];

fn main() -> anyhow::Result<()> {
    let names = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let names: Vec<String> = names.collect();
    let network = names.first().context("which network? l6, mpnet or fashion")?;
    let by_block = names.iter().any(|name| name == "blocks");
    let num_examples = number("TESSERA_BENCH_EXAMPLES", 500)?;
    let num_experts = number("TESSERA_BENCH_EXPERTS", 16)?;
    let bench = Bench::new(network, num_examples, num_experts)?;
    let ks = [num_experts / 8, num_experts / 4, num_experts / 2, num_experts * 3 / 4];
    println!("{network}, {num_experts} experts, {num_examples} examples\n");
    let titles: String = ks.iter().map(|k| format!(" k = {k} |")).collect();
    println!("| groups | router | left out is | blocks |{titles}");
    println!("|---|---|---|---|{}", "---|".repeat(ks.len()));
    let wanted = std::env::var("TESSERA_BENCH_CASES").unwrap_or_default();
    for case in CASES.into_iter().filter(|case| name(*case).contains(&wanted)) {
        bench.measure(case, &ks, by_block)?;
    }
    Ok(())
}

/// Returns how a case is called: groups, router, and what is put for what is left out.
fn name((grouping, router, compensate): Case) -> String {
    let groups = if grouping == Grouping::Random { "random" } else { "k-means" };
    let left_out = if compensate { "its mean" } else { "nothing" };
    format!("{groups}/{router}/{left_out}")
}

fn number(variable: &str, otherwise: usize) -> anyhow::Result<usize> {
    let text = std::env::var(variable).ok();
    text.map_or(Ok(otherwise), |text| text.parse().context(variable.to_owned()))
}

/// An anchor, and where its family and data lie.
struct Bench {
    runtime: Runtime,
    anchor: String,
    source: PathBuf,
    manifest: String,
    /// Images for fitting and judging, or texts.
    data: [PathBuf; 2],
    num_examples: usize,
    num_experts: usize,
}

impl Bench {
    fn new(network: &str, num_examples: usize, num_experts: usize) -> anyhow::Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let given = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let library = find_library(None, given.as_deref(), std::slice::from_ref(&root))?;
        let num_threads = number("TESSERA_BENCH_THREADS", 1)?;
        let config = RuntimeConfig { library, num_threads, spin: false, memory_limit: None };
        let runtime = Runtime::start(&config)?;
        let data = |folder: &str, files: [&str; 2]| {
            files.map(|file| root.join(".tessera/data").join(folder).join(file))
        };
        let (anchor, source, manifest, data) = if network == "fashion" {
            let source = root.join("models/fashion");
            let whole = std::fs::read_to_string(source.join("family.toml"))?;
            let manifest = whole.split("[[maps]]").next().unwrap_or_default().to_owned();
            let files = ["train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"];
            ("l", source, manifest, data("fashion-mnist", files))
        } else {
            let source = root.join("models/text");
            let manifest = text_manifest(&source, network)?;
            (network, source, manifest, data("mails", ["calibration.jsonl", "heldout.jsonl"]))
        };
        let anchor = anchor.to_owned();
        Ok(Self { runtime, anchor, source, manifest, data, num_examples, num_experts })
    }

    /// Splits the anchor in one way, measures it for each `k`, and prints the rows.
    fn measure(&self, case: Case, ks: &[usize], by_block: bool) -> anyhow::Result<()> {
        let (grouping, router, compensate) = case;
        let Self { anchor, num_experts, .. } = self;
        let entry = format!(
            "[[experts]]\nanchor = \"{anchor}\"\nnum_experts = {num_experts}\ntop_k = {ks:?}\n\
             router = \"{router}\"\n"
        );
        let pool = Pool::new(&self.source, &self.manifest, &entry)?;
        let options = ExpertOptions { grouping, compensate, ..ExpertOptions::default() };
        let calibration = self.read(&pool.path(), 0, 1_000)?;
        let mut writer = FamilyWriter::begin(&pool.path())?;
        fit_experts(&self.runtime, &mut writer, &calibration, &options, &())?;
        let family = Arc::new(Family::load(&pool.path())?);
        let num_blocks = family.split_parts().len();
        let held_out = self.read(&pool.path(), 1, self.num_examples)?;
        let mut parts = vec![format!("0..{num_blocks}")];
        parts.extend((0..num_blocks).filter(|_| by_block).map(|block| block.to_string()));
        let plan = |blocks: &str, k: &usize| {
            format!("{anchor}[0..{num_blocks}]{{e{num_experts}k{k}.mlp:{blocks}}}")
        };
        let plans: Vec<String> =
            parts.iter().flat_map(|blocks| ks.iter().map(move |k| plan(blocks, k))).collect();
        let plans: Vec<&str> = plans.iter().map(String::as_str).collect();
        let mut executor = Executor::new(self.runtime.clone(), family);
        let options = EvaluateOptions {
            max_tokens: 128,
            plans_per_round: plans.len(),
            max_rounds: 0,
            command: String::new(),
        };
        let corpora = std::slice::from_ref(&held_out);
        let found = report(&mut executor, corpora, &plans, &options, &())?.plans;
        let name = name(case).replace('/', " | ");
        for blocks in &parts {
            let quality = |k| found.get(&plan(blocks, k)).copied().unwrap_or(f64::NAN);
            let row: String = ks.iter().map(|k| format!(" {:.3} |", quality(k))).collect();
            println!("| {name} | {blocks} |{row}");
        }
        let mut timed = vec![format!("{anchor}[0..{num_blocks}]")];
        timed.extend(ks.iter().map(|k| plan(&parts[0], k)));
        let times = self.times(&executor, &held_out, &timed)?;
        let row: String = times[1..].iter().map(|t| format!(" {:.2} |", t / times[0])).collect();
        println!("| {name} | time |{row}");
        Ok(())
    }

    /// Returns what the feed-forward parts of each plan take, in seconds.
    fn times(
        &self,
        executor: &Executor,
        data: &Dataset,
        plans: &[String],
    ) -> anyhow::Result<Vec<f64>> {
        let family = executor.family();
        let batches = data.batches(family, &self.anchor, 16, 128)?;
        let mut last = batches.last().context("a batch")?.as_slice();
        if data.labels().is_none() {
            last = &last[last.len() - 1..];
        }
        let sides = SideInputs::of_input(data.input(family, &self.anchor, last, 128)?)?;
        let paths = plans.iter().map(|plan| PlanId::parse(&family.graph, plan));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        let mut times = vec![Vec::new(); paths.len()];
        for _ in 0..TURNS {
            for (path, times) in paths.iter().zip(&mut times) {
                let mut parts = Parts { graph: &family.graph, time: Duration::ZERO };
                executor.run(path, &sides, &mut parts)?;
                times.push(parts.time.as_secs_f64());
            }
        }
        let tenth = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[TURNS / 10]
        };
        Ok(times.into_iter().map(tenth).collect())
    }

    fn read(&self, family: &Path, which: usize, limit: usize) -> anyhow::Result<Dataset> {
        let manifest = Manifest::read(family)?;
        Ok(Dataset::read(&self.data[which], None, &manifest, Some(limit))?)
    }
}

/// Adds up what feed-forward parts take.
struct Parts<'g> {
    graph: &'g FamilyGraph,
    time: Duration,
}

impl ModuleObserver for Parts<'_> {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        if self.graph.module(module).kind == ModuleKind::Mlp {
            self.time += time;
        }
    }
}
