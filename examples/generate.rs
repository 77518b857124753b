//! Continues token ids with a plan of a family, greedily and step by step, without a server.
//!
//! ```text
//! cargo run --release --example generate -- models/chat "a[0..30]" 32 "504,3575,282,4649,314"
//! ```
//!
//! `THREADS` is the number of threads, and `SPIN` makes idle ones spin.

#![expect(clippy::print_stdout, reason = "an example shows what it found")]

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::Context;
use tessera::{
    app::{Machine, MachineConfig},
    assembly::Family,
    family::PlanId,
    plan::Plan,
    runtime::{Executor, Sequence, StepBatch, StepRow, Tokens},
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, plan, num, prompts @ ..] = &arguments[..] else {
        anyhow::bail!("arguments: family's folder, plan, number of tokens, lists of token ids");
    };
    let num: usize = num.parse()?;
    let family = Arc::new(Family::load(Path::new(folder))?);
    let num_threads = std::env::var("THREADS").map_or(Ok(0), |threads| threads.parse())?;
    let spin = std::env::var_os("SPIN").is_some();
    let config = MachineConfig { num_threads, spin, ..MachineConfig::default() };
    let machine = Machine::start(config)?;
    let executor = Executor::new(machine.runtime().clone(), family.clone());
    let plan = PlanId::parse(&family.graph, plan)?;
    for prompt in prompts {
        let prompt = prompt.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
        let mut sequence = executor.sequence();
        // Modules are loaded by a step of their own.
        step(&executor, &plan, &mut executor.sequence(), prompt.clone())?;
        let start = Instant::now();
        let mut token = step(&executor, &plan, &mut sequence, prompt.clone())?;
        let prefill = start.elapsed();
        let (start, mut made) = (Instant::now(), vec![token]);
        while made.len() < num {
            token = step(&executor, &plan, &mut sequence, vec![token])?;
            made.push(token);
        }
        let steps = u32::try_from(made.len() - 1)?.max(1);
        println!("{made:?}");
        println!("prefill {prefill:?}, then {:?} a token", start.elapsed() / steps);
    }
    Ok(())
}

/// Runs `tokens` and returns the most likely next one.
fn step(
    executor: &Executor,
    plan: &Plan,
    sequence: &mut Sequence,
    tokens: Vec<i64>,
) -> anyhow::Result<i64> {
    let rows = vec![StepRow { sequence, tokens, wanted: Tokens::Last }];
    let outputs = executor.forward(plan, &mut StepBatch { rows }, &mut ())?;
    let logits = outputs.as_ref().context("no logits")?.view()?.1;
    let best = logits.iter().enumerate().max_by(|one, other| one.1.total_cmp(other.1));
    Ok(i64::try_from(best.context("no words")?.0)?)
}
