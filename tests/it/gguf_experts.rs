//! Decoders with experts from GGUF files against the same decoders of safetensors.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{
    gguf::interleaved,
    sequences::{check, plan_of, step},
    support::{
        decoder::{Random, at_once},
        gguf::{Value as Stored, Written},
        language::{Model, WEIGHTS, gguf_name},
    },
};

/// Keys of GGUF, and their names in configurations of transformers.
const INTEGERS: [(&str, &str); 9] = [
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ("expert_used_count", "num_experts_per_tok"),
    ("feed_forward_length", "intermediate_size"),
];

/// Parts of names that only tensors of experts have.
const NAMES: [(&str, &str); 10] = [
    ("block_sparse_moe.gate.", "ffn_gate_inp."),
    ("mlp.gate.", "ffn_gate_inp."),
    ("mlp.shared_expert_gate.", "ffn_gate_inp_shexp."),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("block_sparse_moe.experts.", "mlp.experts."),
    ("w1.", "gate_proj."),
    ("w3.", "up_proj."),
    ("w2.", "down_proj."),
];

/// Returns the name in GGUF of a tensor of transformers, and the number of the expert if it is one
/// expert's.
fn name_of(theirs: &str) -> (String, Option<usize>) {
    let name = gguf_name(theirs, &NAMES);
    let Some((block, expert)) = name.split_once("ffn_experts.") else { return (name, None) };
    let (number, part) = expert.split_once('.').expect("a number and a part");
    let part = part.strip_suffix(".weight").expect("a matrix");
    (format!("{block}ffn_{part}_exps.weight"), number.parse().ok())
}

/// Tensor of a file: extents with the innermost first, and bytes by the number of the expert.
#[derive(Default)]
struct Tensor {
    extents: Vec<u64>,
    experts: BTreeMap<usize, Vec<u8>>,
    is_stacked: bool,
}

/// Returns the weights of `model` in a GGUF file of `architecture`.
fn in_gguf(model: &Model, architecture: &str) -> Model {
    let config: Value = serde_json::from_slice(&model.files["config.json"]).expect("JSON");
    let number = |key: &str| config[key].as_u64().map(|value| u32::try_from(value).expect("small"));
    let float = |value: &Value| Stored::float(value.as_f64().expect("a number") as f32);
    let name = |key: &str| format!("{architecture}.{key}");
    let theta = if config["rope_theta"].is_null() { &config["rope_parameters"] } else { &config };
    let experts = number("num_local_experts").or(number("num_experts")).expect("experts");
    let mut file = Written::new()
        .with("general.architecture", Stored::text(architecture))
        .with(&name("expert_count"), Stored::number(experts))
        .with(&name("rope.freq_base"), float(&theta["rope_theta"]))
        .with(&name("attention.layer_norm_rms_epsilon"), float(&config["rms_norm_eps"]));
    for (key, theirs) in INTEGERS {
        if let Some(value) = number(theirs) {
            file = file.with(&name(key), Stored::number(value));
        }
    }
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    let parsed = SafeTensors::deserialize(&model.files[WEIGHTS]).expect("safetensors");
    for (theirs, view) in parsed.tensors() {
        let (name, expert) = name_of(&theirs);
        let heads = if theirs.contains("q_proj") { 4 } else { 2 };
        let is_turned =
            architecture == "llama" && ["q_proj", "k_proj"].iter().any(|p| theirs.contains(p));
        let bytes = match is_turned {
            true => interleaved(view.data(), heads, 8),
            false => view.data().to_vec(),
        };
        let tensor = tensors.entry(name).or_default();
        tensor.extents = view.shape().iter().rev().map(|extent| *extent as u64).collect();
        // The gate of a shared expert is a vector there.
        tensor.extents.truncate(if theirs.contains("shared_expert_gate") { 1 } else { 2 });
        tensor.is_stacked = expert.is_some();
        tensor.experts.insert(expert.unwrap_or(0), bytes);
    }
    for (name, mut tensor) in tensors {
        if tensor.is_stacked {
            tensor.extents.push(tensor.experts.len() as u64);
        }
        let bytes: Vec<u8> = tensor.experts.into_values().flatten().collect();
        file = file.tensor(&name, &tensor.extents, 0, &bytes);
    }
    Model::of_gguf(file.bytes(), config["vocab_size"].as_u64().expect("a number"))
}

#[test]
fn experts_give_the_same_from_gguf_as_from_safetensors() {
    for (case, architecture, renormalize) in [
        ("mixtral", "llama", None),
        ("qwen2_moe-norm", "qwen2moe", Some(false)),
        ("qwen3_moe", "qwen3moe", Some(true)),
        ("olmoe", "olmoe", Some(false)),
    ] {
        let mut theirs = Model::read(case);
        if let Some(renormalize) = renormalize {
            theirs.set("norm_topk_prob", json!(renormalize));
        }
        let ours = in_gguf(&theirs, architecture);
        let (theirs, ours) = (theirs.executor(), ours.executor());
        let tokens = Random(6).tokens(15);
        let expected = at_once(&theirs, &plan_of(&theirs, "a[0..2]"), &tokens);
        let plan = plan_of(&ours, "a[0..2]");
        check(architecture, &at_once(&ours, &plan, &tokens), &expected);
        // The heads of one case are too narrow for a cache.
        if architecture == "qwen3moe" {
            continue;
        }
        let mut sequence = ours.sequence();
        let mut found = step(&ours, &plan, &mut [(&mut sequence, &tokens[..8])]);
        found.extend(step(&ours, &plan, &mut [(&mut sequence, &tokens[8..])]));
        check("in steps", &found, &expected);
    }
}
