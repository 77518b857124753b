//! Decoders step by step, with caches, against the same decoders over the whole sequence at once.

use std::time::Duration;

use tessera::{
    family::{ModuleId, PlanId},
    plan::{Continuation, Plan},
    runtime::{Executor, ModuleObserver, Routing, Sequence, StepBatch, StepRow, Tokens},
};

use crate::support::{
    decoder::{Random, at_once, llama, rows},
    language::{CHECKPOINTS, Model, reference},
    runtime,
};

/// Largest difference of a logit step by step from the same at once.
const TOLERANCE: f32 = 2e-5;

/// Returns the plan that `id` names.
pub(crate) fn plan_of(executor: &Executor, id: &str) -> Plan {
    PlanId::parse(&executor.family().graph, id).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a step of sequences with their new tokens; returns the logits of all of them.
pub(crate) fn step(
    executor: &Executor,
    plan: &Plan,
    parts: &mut [(&mut Sequence, &[i64])],
) -> Vec<Vec<f32>> {
    let num = parts.iter().map(|(_, tokens)| tokens.len()).sum();
    let mut batch = StepBatch::default();
    for (sequence, tokens) in parts {
        let tokens = tokens.to_vec();
        batch.rows.push(StepRow { sequence, tokens, wanted: Tokens::All });
    }
    let outputs = executor.forward(plan, &mut batch, &mut ()).unwrap_or_else(|e| panic!("{e}"));
    rows(outputs.expect("logits").view().expect("f32").1, num)
}

pub(crate) fn check(name: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    let largest = pairs.map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
    println!("{name}: largest difference {largest:.1e}");
    assert!(largest <= TOLERANCE, "{name}: {largest:.1e}");
}

#[test]
fn a_llama_gives_the_same_at_every_position_token_by_token() {
    let model = llama();
    let executor = model.executor();
    let plan = plan_of(&executor, "a[0..2]");
    let tokens = Random(1).tokens(17);
    let expected = at_once(&executor, &plan, &tokens);
    let mut sequence = executor.sequence();
    let mut found = Vec::new();
    for token in &tokens {
        found.extend(step(&executor, &plan, &mut [(&mut sequence, &[*token])]));
    }
    check("token by token", &found, &expected);
    assert_eq!(sequence.position(), 17);
    // Refused drafts are taken back, and other tokens take their places.
    sequence.truncate(5);
    let found = step(&executor, &plan, &mut [(&mut sequence, &tokens[5..])]);
    check("after a truncation", &found, &expected[5..]);
}

#[test]
fn ragged_sequences_run_together_as_alone() {
    let model = llama();
    let executor = model.executor();
    let plan = plan_of(&executor, "a[0..2]");
    let mut random = Random(2);
    let all: [Vec<i64>; 3] = [random.tokens(40), random.tokens(7), random.tokens(300)];
    let expected = all.each_ref().map(|tokens| at_once(&executor, &plan, tokens));
    let mut sequences = [executor.sequence(), executor.sequence(), executor.sequence()];
    // Chunks of a prompt beside single tokens; the third sequence outgrows its first slot.
    let mut done = [0, 0, 0];
    let mut found: [Vec<Vec<f32>>; 3] = Default::default();
    for chunks in [[16, 1, 100], [1, 1, 100], [22, 4, 99], [1, 1, 1]] {
        let mut parts: Vec<(&mut Sequence, &[i64])> = Vec::new();
        for ((sequence, tokens), (start, chunk)) in
            sequences.iter_mut().zip(&all).zip(done.iter().zip(chunks))
        {
            parts.push((sequence, &tokens[*start..start + chunk]));
        }
        let mut logits = step(&executor, &plan, &mut parts).into_iter();
        for ((found, chunk), done) in found.iter_mut().zip(chunks).zip(&mut done) {
            found.extend(logits.by_ref().take(chunk));
            *done += chunk;
        }
    }
    assert_eq!(done, [40, 7, 300]);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        check(&format!("sequence {index}"), found, expected);
    }
}

#[test]
fn only_the_last_token_has_a_row_if_no_other_is_wanted() {
    let model = llama();
    let executor = model.executor();
    let plan = plan_of(&executor, "a[0..2]");
    let tokens = Random(3).tokens(9);
    let expected = at_once(&executor, &plan, &tokens);
    let mut sequence = executor.sequence();
    let row = StepRow { sequence: &mut sequence, tokens, wanted: Tokens::Last };
    let outputs = executor.forward(&plan, &mut StepBatch { rows: vec![row] }, &mut ());
    let outputs = outputs.unwrap_or_else(|e| panic!("{e}")).expect("logits");
    let (shape, logits) = outputs.view().expect("f32");
    assert_eq!(shape, [1, 1, 64]);
    check("last", &rows(logits, 1), &expected[8..]);
}

#[test]
fn every_decoder_gives_the_same_step_by_step() {
    let mut narrow = Vec::new();
    for (name, depth) in CHECKPOINTS {
        let model = Model::read(name);
        let executor = model.executor();
        let plan = plan_of(&executor, &format!("a[0..{depth}]"));
        if executor.caches_of(&plan).len() < depth {
            narrow.push(name);
            continue;
        }
        let encoding = reference(name).encoding();
        let mask = &encoding.attention_mask[..encoding.tokens];
        let num = mask.iter().filter(|mask| **mask == 1).count();
        let tokens = &encoding.input_ids[..num];
        let expected = at_once(&executor, &plan, tokens);
        let mut sequence = executor.sequence();
        let (prompt, rest) = tokens.split_at(num / 2);
        let mut found = step(&executor, &plan, &mut [(&mut sequence, prompt)]);
        for token in rest {
            found.extend(step(&executor, &plan, &mut [(&mut sequence, &[*token])]));
        }
        check(name, &found, &expected);
    }
    let too_narrow_for_a_cache = ["mixtral-k1-odd", "qwen3_moe", "qwen3_moe-f16"];
    assert_eq!(narrow, too_narrow_for_a_cache);
}

#[test]
fn a_sequence_without_a_cache_of_every_position_is_refused() {
    let mut model = llama();
    model.more("variants = [\"skip\"]\n");
    let executor = model.executor();
    let whole = plan_of(&executor, "a[0..2]");
    let short = plan_of(&executor, "a[0..2]{skip.attn:1}");
    let tokens = Random(4).tokens(6);
    let mut sequence = executor.sequence();
    step(&executor, &whole, &mut [(&mut sequence, &tokens[..3])]);
    // A step to fewer attention modules is free; the way back costs a prefill of what is missing.
    step(&executor, &short, &mut [(&mut sequence, &tokens[3..4])]);
    let attention: Vec<ModuleId> =
        executor.caches_of(&whole).into_iter().map(|(module, _)| module).collect();
    let cost = Continuation::Prefill { start: 3, num_tokens: 1 };
    assert_eq!(sequence.continuation(&attention), cost);
    let row = StepRow { sequence: &mut sequence, tokens: vec![tokens[4]], wanted: Tokens::Last };
    let refused = executor.forward(&whole, &mut StepBatch { rows: vec![row] }, &mut ());
    assert!(refused.is_err());
    sequence.truncate(3);
    let found = step(&executor, &whole, &mut [(&mut sequence, &tokens[3..])]);
    check("after the prefill", &found, &at_once(&executor, &whole, &tokens)[3..]);
}

#[test]
fn blocks_come_back_when_a_sequence_is_dropped() {
    let model = llama();
    let executor = model.executor();
    let plan = plan_of(&executor, "a[0..2]");
    let mut sequence = executor.sequence();
    assert_eq!(sequence.cache_bytes(), 0);
    step(&executor, &plan, &mut [(&mut sequence, &Random(5).tokens(33))]);
    // Two blocks of 32 positions; two modules; keys and values of two heads, 8 wide.
    assert_eq!(sequence.cache_bytes(), 2 * 32 * 2 * 2 * 16 * 4);
    let before = runtime().cache_bytes();
    assert!(before >= sequence.cache_bytes());
    let own = sequence.cache_bytes();
    drop(sequence);
    assert!(runtime().cache_bytes() <= before - own);
}

/// Observer that counts what it hears of modules.
#[derive(Default)]
struct Counts {
    ran: usize,
    routed: usize,
}

impl ModuleObserver for Counts {
    fn ran(&mut self, _: ModuleId, _: Duration) {
        self.ran += 1;
    }

    fn routed(&mut self, _: ModuleId, _: &Routing) {
        self.routed += 1;
    }
}

#[test]
fn a_step_is_observed_like_a_whole_run() {
    let model = Model::read("mixtral");
    let executor = model.executor();
    let plan = plan_of(&executor, "a[0..2]");
    let mut sequence = executor.sequence();
    let row = StepRow { sequence: &mut sequence, tokens: vec![1, 2], wanted: Tokens::Last };
    let mut counts = Counts::default();
    let outputs = executor.forward(&plan, &mut StepBatch { rows: vec![row] }, &mut counts);
    outputs.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((counts.ran, counts.routed), (plan.path.len(), 2));
}
