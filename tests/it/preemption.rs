//! Sequences under a limit of memory that does not hold the caches of all.

use std::thread;

use serde_json::{Value, json};

use crate::{
    chats::with_bytes,
    support::{
        Program,
        decoder::{Heads, llama_with},
    },
};

/// Number of sequences that are asked for at once, and of tokens of each.
const SEQUENCES: usize = 6;
const TOKENS: usize = 800;

/// Heads with 16 KiB of keys and values for each token of both blocks.
const HEADS: Heads = Heads { num: 8, num_shared: 8, width: 128 };
const BYTES_PER_TOKEN: u64 = 2 * 2 * 8 * 128 * 4;

/// Memory beside what the idle program holds: caches of two and a half sequences.
const ROOM: u64 = BYTES_PER_TOKEN * (TOKENS as u64) * 5 / 2;

/// Returns a request; prompts have different lengths, and every second one is greedy.
fn request(index: usize) -> Value {
    let prompt = "a word and another one, ".repeat(1 + 2 * index);
    json!({"model": "language", "prompt": prompt, "max_tokens": TOKENS - prompt.len(),
           "temperature": if index.is_multiple_of(2) { 1.0 } else { 0.0 }, "seed": index,
           "ignore_eos": true, "logprobs": 0})
}

/// Asks for all sequences at once. Returns the text and the log-probabilities of each.
fn ask_all(program: &Program) -> Vec<Value> {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..SEQUENCES)
            .map(|index| {
                let ask =
                    move || program.ask("POST", "/v1/completions", &request(index).to_string());
                scope.spawn(ask)
            })
            .collect();
        let answers = asked.into_iter().map(|asked| asked.join().expect("no panic"));
        answers
            .map(|(status, body)| {
                assert_eq!(status, 200, "{body}");
                let answer: Value = serde_json::from_str(&body).expect("JSON");
                answer["choices"][0].clone()
            })
            .collect()
    })
}

/// Returns the value of a metric of generation, which is 0 before the first step.
fn metric(program: &Program, name: &str) -> f64 {
    let (_, text) = program.ask("GET", "/metrics", "");
    let start = format!("tessera_generation_{name}{{family=\"language\"}} ");
    let found = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
    found.map_or(0.0, |value| value.parse().expect("a number"))
}

#[test]
fn preempted_sequences_end_with_the_same_bits_and_give_their_memory_back() {
    let model = with_bytes(llama_with(258, HEADS).with_context(1_000), "{{ messages[0].content }}");
    drop(model.load().unwrap_or_else(|e| panic!("{e}")));
    let patient = ["--request-timeout", "600"];
    let roomy = Program::start(model.pool(), &patient);
    let warm = json!({"model": "language", "prompt": "a", "max_tokens": 40}).to_string();
    assert_eq!(roomy.status("POST", "/v1/completions", &warm), 200);
    let limit = format!("{}B", roomy.memory_bytes() + ROOM);
    let expected = ask_all(&roomy);
    assert!(metric(&roomy, "preemptions_total") < 0.5);
    drop(roomy);
    let options = [patient[0], patient[1], "--memory-limit", &limit];
    let tight = Program::start(model.pool(), &options);
    for round in 0..2 {
        let before = metric(&tight, "preemptions_total");
        let found = ask_all(&tight);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected, "round {round}: sequence {index} differs");
        }
        let num_preempted = metric(&tight, "preemptions_total") - before;
        println!("round {round}: {num_preempted} preemptions under {limit}");
        assert!(num_preempted > 0.5, "round {round}: nothing was preempted");
    }
    // A step is counted after its answer was sent.
    while metric(&tight, "sequences_running") > 0.0 {
        thread::yield_now();
    }
    assert!(metric(&tight, "sequences_waiting") < 0.5);
    // What is left are whole chunks of prompts, which are kept.
    let kept = (0..SEQUENCES).map(|index| {
        let prompt = request(index)["prompt"].as_str().expect("a text").len() as u64;
        prompt / 64 * 64 * BYTES_PER_TOKEN
    });
    let left = metric(&tight, "cache_bytes");
    assert!(left <= kept.sum::<u64>() as f64, "{left} bytes are left");
}
