//! Decoders of GGUF files against the same decoders of safetensors, and quantized blocks against
//! their values.

use serde_json::json;
use tessera::plan::Plan;

use crate::{
    sequences::{check, plan_of, step},
    support::{
        decoder::{Random, at_once, llama},
        gguf::{Value, Written},
        language::Model,
    },
};

/// Keys of a decoder: name and number.
const KEYS: [(&str, u32); 6] = [
    ("block_count", 2),
    ("context_length", 1024),
    ("embedding_length", 32),
    ("feed_forward_length", 48),
    ("attention.head_count", 4),
    ("attention.head_count_kv", 2),
];

/// Returns llama's keys with `numbers`.
fn keys(numbers: &[(&str, u32)]) -> Written {
    let file = Written::new()
        .with("general.architecture", Value::text("llama"))
        .with("general.languages", Value::list(8, &[Value::text("en")]))
        .with("tokenizer.ggml.add_bos_token", Value::truth(false));
    let file = file.with("llama.attention.layer_norm_rms_epsilon", Value::float(1e-5));
    numbers
        .iter()
        .fold(file, |file, (key, value)| file.with(&format!("llama.{key}"), Value::number(*value)))
}

/// Orders the rows of queries or keys so that what turns together is neighboured, as the converter
/// of llama.cpp does.
pub(crate) fn interleaved(rows: &[u8], num_heads: usize, head_width: usize) -> Vec<u8> {
    let row = rows.len() / (num_heads * head_width);
    let half = head_width / 2;
    let order = (0..num_heads * head_width).map(|to| {
        let (head, place) = (to / head_width, to % head_width);
        head * head_width + place % 2 * half + place / 2
    });
    order.flat_map(|from| rows[from * row..][..row].to_vec()).collect()
}

/// Returns a decoder in GGUF with the weights of `model`.
fn of_model(model: &Model) -> Model {
    Model::of_gguf(with_weights(keys(&KEYS), model).bytes(), 64)
}

/// Returns `file` with the weights of `model`.
fn with_weights(file: Written, model: &Model) -> Written {
    model.weights_in(file, &[], |name, bytes| match name {
        name if name.contains("q_proj") => interleaved(bytes, 4, 8),
        name if name.contains("k_proj") => interleaved(bytes, 2, 8),
        _ => bytes.to_vec(),
    })
}

#[test]
fn a_llama_gives_the_same_from_gguf_as_from_safetensors() {
    let (theirs, ours) = (llama(), of_model(&llama()));
    let (theirs, ours) = (theirs.executor(), ours.executor());
    let tokens = Random(2).tokens(17);
    let expected = at_once(&theirs, &plan_of(&theirs, "a[0..2]"), &tokens);
    let plan = plan_of(&ours, "a[0..2]");
    check("at once", &at_once(&ours, &plan, &tokens), &expected);
    let mut sequence = ours.sequence();
    let mut found = step(&ours, &plan, &mut [(&mut sequence, &tokens[..9])]);
    found.extend(step(&ours, &plan, &mut [(&mut sequence, &tokens[9..])]));
    check("in steps", &found, &expected);
}

#[test]
fn divisors_of_rotary_positions_are_the_scaling_of_llama_3() {
    let mut theirs = llama();
    theirs.set(
        "rope_scaling",
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 128}),
    );
    // The wavelengths are 6.28 tokens, which is short, 62.8, which is between 32 and 128, and more.
    let kept = (128.0 / (20.0 * std::f32::consts::PI) - 1.0) / 3.0;
    let divisors = [1.0, 1.0 / ((1.0 - kept) / 8.0 + kept), 8.0, 8.0];
    let bytes: Vec<u8> = divisors.iter().flat_map(|divisor: &f32| divisor.to_le_bytes()).collect();
    let file = with_weights(keys(&KEYS), &theirs).tensor("rope_freqs.weight", &[4], 0, &bytes);
    let ours = Model::of_gguf(file.bytes(), 64);
    let [plain, theirs, ours] = [llama(), theirs, ours].map(|model| {
        let executor = model.executor();
        at_once(&executor, &plan_of(&executor, "a[0..2]"), &Random(2).tokens(17))
    });
    check("llama 3", &ours, &theirs);
    assert!(plain[16].iter().zip(&ours[16]).any(|(a, b)| (a - b).abs() > 1e-3), "it matters");
}

/// Types of blocks: ggml's number, elements and bytes of a block, and places of its scales.
const TYPES: [(u32, usize, usize, &[usize]); 8] = [
    (2, 32, 18, &[0]),
    (3, 32, 20, &[0, 2]),
    (6, 32, 22, &[0]),
    (7, 32, 24, &[0, 2]),
    (8, 32, 34, &[0]),
    (12, 256, 144, &[0, 2]),
    (13, 256, 176, &[0, 2]),
    (14, 256, 210, &[208]),
];

/// Width of hidden states and of the feed-forward part of a decoder of blocks.
const WIDTH: u64 = 256;
const NUM_WORDS: u64 = 40;

/// Returns a decoder of one block whose matrices are random blocks of a type.
fn of_blocks((kind, elements, size, scales): (u32, usize, usize, &[usize])) -> Model {
    let numbers = [
        ("block_count", 1),
        ("embedding_length", 256),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 64),
    ];
    let mut random = Random(u64::from(kind));
    let mut blocks = |rows: u64| -> Vec<u8> {
        let num = (rows * WIDTH) as usize / elements;
        let mut bytes: Vec<u8> = (0..num * size).map(|_| random.next().to_le_bytes()[1]).collect();
        for block in bytes.chunks_exact_mut(size) {
            // Scales of K-quants are multiplied by others, and levels of Q8_0 are large.
            let exponent = match kind {
                8 => 0x0c,
                _ if elements == 256 => 0x08,
                _ => 0x18,
            };
            scales.iter().for_each(|at| block[at + 1] = block[at + 1] & 0x83 | exponent);
        }
        bytes
    };
    let ones: Vec<u8> = (0..WIDTH).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
    let mut file =
        keys(&numbers).tensor("token_embd.weight", &[WIDTH, NUM_WORDS], kind, &blocks(NUM_WORDS));
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file = file.tensor(&format!("{name}.weight"), &[WIDTH], 0, &ones);
    }
    for (name, rows) in [
        ("attn_q", WIDTH),
        ("attn_k", WIDTH / 2),
        ("attn_v", WIDTH / 2),
        ("attn_output", WIDTH),
        ("ffn_gate", WIDTH),
        ("ffn_up", WIDTH),
        ("ffn_down", WIDTH),
    ] {
        file = file.tensor(&format!("blk.0.{name}.weight"), &[WIDTH, rows], kind, &blocks(rows));
    }
    let mut model = Model::of_gguf(file.bytes(), NUM_WORDS);
    model.more("variants = [\"f32\"]\n");
    model
}

/// Returns the distance of two vectors by the length of the second.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let far = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    far / length(&mut expected.iter().copied())
}

#[test]
fn quantized_blocks_are_near_their_values_and_rows_do_not_change_one_another() {
    for block_type in TYPES {
        let model = of_blocks(block_type);
        let executor = model.executor();
        let [blocks, values]: [Plan; 2] =
            ["a[0..1]", "a[0..1]{f32:0,exit:f32}"].map(|id| plan_of(&executor, id));
        let tokens: Vec<i64> = Random(3).tokens(9).iter().map(|token| token % 40).collect();
        let (found, expected) =
            (at_once(&executor, &blocks, &tokens), at_once(&executor, &values, &tokens));
        for (found, expected) in found.iter().zip(&expected) {
            let far = distance(found, expected);
            assert!(far < 0.06 && far > 1e-6, "type {}: {far}", block_type.0);
        }
        let mut sequences = [executor.sequence(), executor.sequence(), executor.sequence()];
        let [a, b, c] = &mut sequences;
        let parts = [&tokens[..4], &tokens[4..5], &tokens[5..]];
        let mut rows = [(a, parts[0]), (b, parts[1]), (c, parts[2])];
        let together = step(&executor, &blocks, &mut rows);
        let alone = parts.iter().flat_map(|tokens| {
            step(&executor, &blocks, &mut [(&mut executor.sequence(), *tokens)])
        });
        assert_eq!(alone.collect::<Vec<_>>(), together, "type {}", block_type.0);
    }
}
