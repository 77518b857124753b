//! Gemma 3 from safetensors and from GGUF. Its logits are compared with those of transformers in
//! `moe`, and steps with a cache in `sequences`, like those of all decoders.

use serde_json::{Value, json};

use crate::{
    sequences::{check, plan_of, step},
    support::{
        decoder::{Random, at_once},
        gguf::{Value as Stored, Written},
        language::Model,
    },
};

const PLAN: &str = "a[0..4]";

/// Returns the logits of some tokens, with the whole sequence at once.
fn logits(model: &Model) -> Vec<Vec<f32>> {
    let executor = model.executor();
    at_once(&executor, &plan_of(&executor, PLAN), &Random(5).tokens(19))
}

#[test]
fn keys_of_earlier_versions_of_transformers_give_the_same() {
    let mut model = Model::read("gemma3");
    let expected = logits(&model);
    for (key, value) in [
        ("layer_types", Value::Null),
        ("rope_parameters", Value::Null),
        ("cache_implementation", json!("hybrid")),
        ("rope_local_base_freq", json!(100.0)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 8.0})),
        ("rope_theta", json!(5000.0)),
        ("tie_word_embeddings", Value::Null),
    ] {
        model.set(key, value);
    }
    assert_eq!(logits(&model), expected);
}

#[test]
fn what_the_reader_does_not_compute_is_refused_by_key() {
    for (key, value) in [
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("hidden_activation", json!("gelu")),
        ("hidden_act", json!("silu")),
        ("num_experts", json!(4)),
        ("use_bidirectional_attention", json!(true)),
    ] {
        let mut model = Model::read("gemma3");
        model.set(key, value);
        let refusal = model.refusal();
        assert!(refusal.contains(&format!("key `{key}`")), "{refusal}");
    }
}

/// Parts of names that only Gemma's tensors have, or name otherwise.
const NAMES: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Returns the weights of `model` in GGUF, with factors of norms as the converter of llama.cpp
/// writes them.
fn in_gguf(model: &Model) -> Model {
    let mut file = Written::new()
        .with("general.architecture", Stored::text("gemma3"))
        .with("gemma3.attention.layer_norm_rms_epsilon", Stored::float(1e-6))
        .with("gemma3.rope.freq_base", Stored::float(5000.0))
        .with("gemma3.rope.freq_base_swa", Stored::float(100.0))
        .with("gemma3.rope.scaling.type", Stored::text("linear"))
        .with("gemma3.rope.scaling.factor", Stored::float(8.0));
    for (key, value) in [
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 16),
        ("attention.sliding_window", 4),
        ("attention.sliding_window_pattern", 3),
        ("attention.value_length", 16),
        ("block_count", 4),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 40),
    ] {
        file = file.with(&format!("gemma3.{key}"), Stored::number(value));
    }
    let file = model.weights_in(file, &NAMES, |name, bytes| match name.contains("norm") {
        true => raised(bytes),
        false => bytes.to_vec(),
    });
    Model::of_gguf(file.bytes(), 101)
}

/// Returns each number of `bytes`, raised by 1.
fn raised(bytes: &[u8]) -> Vec<u8> {
    let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes) + 1.0);
    numbers.flat_map(f32::to_le_bytes).collect()
}

#[test]
fn gguf_gives_the_same_as_safetensors_at_once_and_in_steps() {
    let mut theirs = Model::read("gemma3");
    theirs.set("query_pre_attn_scalar", json!(16));
    let ours = in_gguf(&theirs);
    let expected = logits(&theirs);
    check("at once", &logits(&ours), &expected);
    let executor = ours.executor();
    let (plan, tokens) = (plan_of(&executor, PLAN), Random(5).tokens(19));
    let mut sequence = executor.sequence();
    // The second step begins in the middle of a window.
    let mut found = step(&executor, &plan, &mut [(&mut sequence, &tokens[..10])]);
    for token in &tokens[10..] {
        found.extend(step(&executor, &plan, &mut [(&mut sequence, &[*token])]));
    }
    check("in steps", &found, &expected);
}
