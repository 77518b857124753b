//! Runs a plan of a family in a process of its own, without a server.
//!
//! ```text
//! make setup
//! cargo run --release --example embed -- "the mail servers answer"
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it found")]

use std::{path::Path, sync::Arc};

use tessera::{
    app::{Machine, MachineConfig},
    assembly::Family,
    family::PlanId,
    input::ModelInput,
    runtime::{Executor, SideInputs},
};

/// Plan to run: all blocks of MiniLM-L6 in 8-bit integers.
const PLAN: &str = "l6[0..6]{int8:0..6}";

fn main() -> anyhow::Result<()> {
    let text = std::env::args().nth(1).unwrap_or_else(|| "the mail servers answer".into());
    let family = Arc::new(Family::load(Path::new("models/text"))?);
    let machine = Machine::start(MachineConfig::default())?;
    let executor = Executor::new(machine.runtime().clone(), family.clone());

    let plan = PlanId::parse(&family.graph, PLAN)?;
    let anchor = family.graph.stem_anchor(&plan.path).unwrap_or_default();
    let tokenizer = family.tokenizer(anchor).ok_or_else(|| anyhow::anyhow!("no tokenizer"))?;
    let sides = SideInputs::of_input(ModelInput::Tokens(tokenizer.encode(&[&text])?))?;
    let outputs = executor.run(&plan, &sides, &mut ())?;

    let embedding = outputs.first().and_then(|output| output.as_f32()).unwrap_or_default();
    let length = embedding.iter().map(|value| value * value).sum::<f32>().sqrt();
    println!("{} numbers of length {length:.3}: {:?} …", embedding.len(), &embedding[..4]);
    Ok(())
}
