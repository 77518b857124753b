//! Caches of 8-bit integers: close to caches in f32, and as exact in everything else.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

use tessera::{
    assembly::Family,
    input::SpecialText,
    plan::Plan,
    runtime::{Executor, Sequence},
};

use crate::{
    generation::{Chat, by},
    sequences::{plan_of, step},
    support::{
        CONFIG,
        decoder::{Heads, Random, at_once, llama, llama_with},
        language::Model,
        root, runtime,
    },
};

/// Largest difference of a logit from the same without a cache, relative to the largest logit.
const TOLERANCE: f32 = 0.04;

/// Heads whose queries and keys ONNX Runtime turns.
const TURNED: Heads = Heads { num: 4, num_shared: 2, width: 16 };

fn int8(model: Model) -> Model {
    model.with_cache("int8").with_context(400)
}

/// Runs the tokens of a sequence in chunks. Returns the logits of each token.
fn in_chunks(
    executor: &Executor,
    plan: &Plan,
    sequence: &mut Sequence,
    chunks: &[&[i64]],
) -> Vec<Vec<f32>> {
    chunks.iter().flat_map(|chunk| step(executor, plan, &mut [(sequence, chunk)])).collect()
}

#[test]
fn logits_are_close_to_those_without_a_cache_at_every_position() {
    for (name, model) in [("turned apart", llama()), ("turned", llama_with(64, TURNED))] {
        let model = int8(model);
        let executor = model.executor();
        let plan = plan_of(&executor, "a[0..2]");
        let tokens = Random(1).tokens(90);
        let expected = at_once(&executor, &plan, &tokens);
        let largest = expected.iter().flatten().fold(0.0, |most: f32, logit| most.max(logit.abs()));
        let mut sequence = executor.sequence();
        let mut chunks = vec![&tokens[..64]];
        chunks.extend(tokens[64..].chunks(1));
        let found = in_chunks(&executor, &plan, &mut sequence, &chunks);
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        let difference = pairs.map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max);
        println!("{name}: largest difference {difference:.1e}");
        assert!(difference > 0.0 && difference < TOLERANCE, "{name}: {difference:.1e}");
    }
}

#[test]
fn a_cache_takes_a_quarter_of_the_memory() {
    let bytes = [llama().with_context(400), int8(llama())].map(|model| {
        let executor = model.executor();
        let mut sequence = executor.sequence();
        let plan = plan_of(&executor, "a[0..2]");
        step(&executor, &plan, &mut [(&mut sequence, &Random(5).tokens(33))]);
        sequence.cache_bytes()
    });
    assert_eq!(bytes[0], 4 * bytes[1]);
}

#[test]
fn ragged_sequences_run_together_as_alone_bit_for_bit() {
    let model = int8(llama_with(64, TURNED));
    let executor = model.executor();
    let plan = plan_of(&executor, "a[0..2]");
    let mut random = Random(2);
    // The last sequence outgrows its first slot.
    let all: [Vec<i64>; 3] = [random.tokens(40), random.tokens(7), random.tokens(300)];
    let rounds = [[16, 1, 100], [1, 1, 100], [22, 4, 99], [1, 1, 1]];
    let mut sequences = [executor.sequence(), executor.sequence(), executor.sequence()];
    let mut done = [0; 3];
    let mut found: [Vec<Vec<f32>>; 3] = Default::default();
    for chunks in rounds {
        let starts = done;
        let mut parts: Vec<(&mut Sequence, &[i64])> = Vec::new();
        for (index, sequence) in sequences.iter_mut().enumerate() {
            done[index] += chunks[index];
            parts.push((sequence, &all[index][starts[index]..done[index]]));
        }
        let mut logits = step(&executor, &plan, &mut parts).into_iter();
        for (found, chunk) in found.iter_mut().zip(chunks) {
            found.extend(logits.by_ref().take(chunk));
        }
    }
    for (index, (tokens, found)) in all.iter().zip(&found).enumerate() {
        let mut rest = &tokens[..];
        let chunks = rounds.map(|round| rest.split_off(..round[index]).expect("tokens"));
        let mut sequence = executor.sequence();
        let alone = in_chunks(&executor, &plan, &mut sequence, &chunks);
        assert!(*found == alone, "sequence {index}");
    }
}

#[test]
fn a_fork_goes_on_bit_for_bit_and_every_load_finds_the_same_scales() {
    let model = int8(llama_with(64, TURNED));
    let tokens = Random(3).tokens(80);
    let run = |forks: bool| {
        let executor = model.executor();
        let plan = plan_of(&executor, "a[0..2]");
        let mut sequence = executor.sequence();
        step(&executor, &plan, &mut [(&mut sequence, &tokens[..64])]);
        if forks {
            step(&executor, &plan, &mut [(&mut sequence, &[5, 6, 7])]);
            sequence = sequence.fork(64).expect("memory");
        }
        step(&executor, &plan, &mut [(&mut sequence, &tokens[64..])])
    };
    assert!(run(true) == run(false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_was_read_is_found_again_and_changes_nothing() {
    let chat = Chat::of(int8(llama()), CONFIG);
    let known = Random(9).tokens(150);
    let longer: Vec<i64> = known.iter().chain(&[1, 2, 3]).copied().collect();
    by(&chat, 1, &known).await;
    let (cold, num_cold) = by(&chat, 2, &longer).await;
    let (warm, num_warm) = by(&chat, 1, &longer).await;
    assert_eq!((num_cold, num_warm), (0, 128));
    assert_eq!(warm, cold);
}

#[test]
fn types_that_caches_cannot_have_and_caches_that_nothing_keeps_are_refused() {
    let refusal = llama().with_cache("int4").refusal();
    assert!(refusal.contains("cache"), "{refusal}");
    // Heads of this decoder are too narrow for a cache.
    let refusal = Model::read("mixtral-k1-odd").with_cache("int8").refusal();
    assert!(refusal.contains("generation.cache"), "{refusal}");
}

/// Returns the pool's family `chat` with caches of a type, in `folder`.
fn chat_family(folder: &Path, cache: &str) -> Executor {
    let (from, to) = (root().join("models/chat"), folder.join(cache).join("chat"));
    fs::create_dir_all(&to).expect("created");
    symlink(from.join("anchors"), to.join("anchors")).expect("linked");
    let manifest = fs::read_to_string(from.join("family.toml")).expect("read");
    let manifest = format!("{manifest}\n[generation]\ncache = \"{cache}\"\n");
    fs::write(to.join("family.toml"), manifest).expect("written");
    let family = Family::load(&to).unwrap_or_else(|e| panic!("{:#}", anyhow::Error::new(e)));
    Executor::new(runtime(), Arc::new(family))
}

/// Returns the logarithms of the probabilities.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let shifted = logits.iter().map(|logit| f64::from(logit - most));
    let sum = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|logit| logit - sum).collect()
}

#[test]
fn next_tokens_are_as_likely_as_with_a_cache_in_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let executors = ["f32", "int8"].map(|cache| chat_family(folder.path(), cache));
    for name in ["README.md", "LICENSE"] {
        let text = fs::read_to_string(root().join(name)).expect("read");
        let [plain, int8] = executors.each_ref().map(|executor| {
            let language = executor.family().language().expect("a tokenizer");
            let ids = language.coder.encode(&text, SpecialText::Text).expect("tokens");
            let ids: Vec<i64> = ids.into_iter().take(320).map(i64::from).collect();
            let plan = plan_of(executor, "smollm2[0..30]");
            let chunks: Vec<&[i64]> = ids.chunks(64).collect();
            in_chunks(executor, &plan, &mut executor.sequence(), &chunks)
        });
        let pairs = || plain.iter().zip(&int8);
        let divergences: Vec<f64> = pairs().map(|(plain, int8)| divergence(plain, int8)).collect();
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        let most = divergences.iter().copied().fold(0.0, f64::max);
        let num_same = pairs().filter(|(plain, int8)| best(plain) == best(int8)).count();
        println!("{name}: {mean:.4} on average, {most:.3} at most; {num_same} of 320 are the same");
        assert!(mean < 0.03, "{name}: {mean}");
    }
}

/// Returns the Kullback-Leibler divergence of the tokens' probabilities.
fn divergence(plain: &[f32], other: &[f32]) -> f64 {
    let (plain, other) = (log_softmax(plain), log_softmax(other));
    plain.iter().zip(&other).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Returns the most likely token.
fn best(logits: &[f32]) -> Option<usize> {
    let best = logits.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
    best.map(|(token, _)| token)
}
