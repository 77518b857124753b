//! Tests of reading decoders from GGUF files.

use std::{collections::BTreeSet, path::Path};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    arch::{Backbone, Form, PartId, layout::Reads},
    pool::written::{Value, Written},
    tensor::MappedFile,
};

/// Returns a decoder of one block with the tensors of `architecture`.
fn example(architecture: &str) -> Written {
    let name = |key: &str| format!("{architecture}.{key}");
    let file = Written::new()
        .with("general.architecture", Value::text(architecture))
        .with("general.name", Value::text("example"))
        .with("tokenizer.ggml.model", Value::text("gpt2"))
        .with(&name("block_count"), Value::number(1))
        .with(&name("context_length"), Value::number(128))
        .with(&name("embedding_length"), Value::number(64))
        .with(&name("feed_forward_length"), Value::number(96))
        .with(&name("attention.head_count"), Value::number(4))
        .with(&name("attention.head_count_kv"), Value::number(2))
        .with(&name("attention.layer_norm_rms_epsilon"), Value::float(1e-5))
        .with(&name("rope.freq_base"), Value::float(1e5))
        .with(&name("rope.dimension_count"), Value::number(16))
        .with(&name("vocab_size"), Value::number(10));
    let f32s = |num: usize| vec![0; num * 4];
    // A row of 32 elements is a block of 20 bytes in Q4_1.
    let blocks = |elements: usize| vec![0; elements / 32 * 20];
    let mut file = file
        .tensor("token_embd.weight", &[64, 10], 8, &vec![0; 20 * 34])
        .tensor("output_norm.weight", &[64], 0, &f32s(64))
        .tensor("blk.0.attn_norm.weight", &[64], 0, &f32s(64))
        .tensor("blk.0.ffn_norm.weight", &[64], 0, &f32s(64))
        .tensor("blk.0.attn_q.weight", &[64, 64], 3, &blocks(64 * 64))
        .tensor("blk.0.attn_k.weight", &[64, 32], 3, &blocks(64 * 32))
        .tensor("blk.0.attn_v.weight", &[64, 32], 3, &blocks(64 * 32))
        .tensor("blk.0.attn_output.weight", &[64, 64], 3, &blocks(64 * 64))
        .tensor("blk.0.ffn_gate.weight", &[64, 96], 3, &blocks(64 * 96))
        .tensor("blk.0.ffn_up.weight", &[64, 96], 3, &blocks(64 * 96))
        .tensor("blk.0.ffn_down.weight", &[96, 64], 3, &blocks(64 * 96));
    if architecture.starts_with("qwen2") {
        for (letter, width) in [('q', 64), ('k', 32), ('v', 32)] {
            let bias = format!("blk.0.attn_{letter}.bias");
            file = file.tensor(&bias, &[width as u64], 0, &vec![0; width * 4]);
        }
    }
    if architecture == "gemma3" {
        file = file.with(&name("attention.sliding_window"), Value::number(8));
        for norm in ["post_attention_norm", "post_ffw_norm"] {
            file = file.tensor(&format!("blk.0.{norm}.weight"), &[64], 0, &f32s(64));
        }
    }
    if ["qwen3", "gemma3", "qwen3moe"].contains(&architecture) {
        for letter in ['q', 'k'] {
            let norm = format!("blk.0.attn_{letter}_norm.weight");
            file = file.tensor(&norm, &[16], 0, &f32s(16));
        }
    }
    if architecture == "olmoe" {
        file = file.tensor("blk.0.attn_q_norm.weight", &[64], 0, &f32s(64));
        file = file.tensor("blk.0.attn_k_norm.weight", &[32], 0, &f32s(32));
    }
    if architecture.ends_with("moe") { with_experts(file, architecture) } else { file }
}

/// Returns `file` with three experts in place of the feed-forward part, of which two are taken.
fn with_experts(mut file: Written, architecture: &str) -> Written {
    let name = |key: &str| format!("{architecture}.{key}");
    file = file
        .with(&name("expert_count"), Value::number(3))
        .with(&name("expert_used_count"), Value::number(2));
    let dense = ["ffn_gate.", "ffn_up.", "ffn_down."];
    file.tensors.retain(|tensor| !dense.iter().any(|part| tensor.name.contains(part)));
    let matrices = |count: usize, inner: usize| vec![0; count * inner * 64 / 32 * 20];
    for (part, shared) in [("gate", [64, 32]), ("up", [64, 32]), ("down", [32, 64])] {
        let [input, output] = if part == "down" { [96, 64] } else { [64, 96] };
        let experts = format!("blk.0.ffn_{part}_exps.weight");
        file = file.tensor(&experts, &[input, output, 3], 3, &matrices(3, 96));
        if architecture == "qwen2moe" {
            let one = format!("blk.0.ffn_{part}_shexp.weight");
            file = file.tensor(&one, &shared, 3, &matrices(1, 32));
        }
    }
    if architecture == "qwen2moe" {
        file = file
            .with(&name("expert_feed_forward_length"), Value::number(96))
            .with(&name("expert_shared_feed_forward_length"), Value::number(32))
            .tensor("blk.0.ffn_gate_inp_shexp.weight", &[64], 0, &[0; 64 * 4]);
    }
    file.tensor("blk.0.ffn_gate_inp.weight", &[64, 3], 0, &[0; 64 * 3 * 4])
}

fn read(file: &Written) -> (GgufFile, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.gguf");
    std::fs::write(&path, file.bytes()).expect("written");
    let digest = MappedFile::open(&path).expect("mapped").sha256();
    let file = GgufFile::open(folder.path(), Path::new("a.gguf"), &digest).expect("valid");
    (file, folder)
}

fn refusal(file: &Written, ignored: &[&str]) -> String {
    let ignored: Vec<String> = ignored.iter().map(|key| (*key).to_owned()).collect();
    let (file, _folder) = read(file);
    open(file, &ignored).map(drop).expect_err("refused").to_string()
}

#[test]
fn each_architecture_builds_all_its_parts() {
    let with_experts = with_experts(example("llama"), "llama");
    let files = ALL.map(|architecture| example(architecture.name)).into_iter();
    for file in files.chain([with_experts]) {
        let (file, _folder) = read(&file);
        let decoder = decoder(&file, &[]).expect("supported");
        let layout = decoder.layout();
        assert_eq!(layout.reads, Reads::Tokens { num_words: Some(10), max_tokens: Some(128) });
        for part in 0..layout.parts.len() {
            for is_step in [false, true] {
                let form = Form { is_step, ..Form::PLAIN };
                decoder.build(PartId(part), &form).expect("the tensors are there");
            }
        }
    }
}

#[test]
fn keys_become_a_configuration_of_transformers() {
    let (file, _folder) =
        read(&example("llama").with("llama.rope.scaling.type", Value::text("none")));
    let config = settings::config(&file, ALL[0], &[]).expect("supported");
    let epsilon = f64::from(1e-5_f32);
    assert_eq!(
        config,
        json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "max_position_embeddings": 128, "rms_norm_eps": epsilon,
            "rope_theta": 1e5, "tie_word_embeddings": true,
        })
    );
    let scaled = example("qwen2")
        .with("qwen2.rope.scaling.type", Value::text("linear"))
        .with("qwen2.rope.scaling.factor", Value::float(4.0))
        .tensor("output.weight", &[64, 10], 8, &vec![0; 20 * 34]);
    let (file, _folder) = read(&scaled);
    let config = settings::config(&file, ALL[1], &[]).expect("supported");
    assert_eq!(config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(config["tie_word_embeddings"], json!(false));
    let biased = example("llama").tensor("blk.0.attn_q.bias", &[64], 0, &vec![0; 256]);
    let (file, _folder) = read(&biased);
    let config = settings::config(&file, ALL[0], &[]).expect("supported");
    assert_eq!(config["attention_bias"], json!(true));
}

#[test]
fn a_window_and_the_positions_in_it_are_those_of_gemma_3() {
    let file = example("gemma3")
        .with("gemma3.attention.sliding_window_pattern", Value::number(4))
        .with("gemma3.rope.freq_base_swa", Value::float(50.0))
        .with("gemma3.attention.key_length", Value::number(16));
    let (file, _folder) = read(&file);
    let config = settings::config(&file, ALL[3], &[]).expect("supported");
    for (key, expected) in [
        ("model_type", json!("gemma3_text")),
        ("sliding_window", json!(8)),
        ("sliding_window_pattern", json!(4)),
        ("rope_local_base_freq", json!(50.0)),
        ("query_pre_attn_scalar", json!(16)),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    // Its largest size divides by another root: 64 elements by 4 heads are 16 here as well.
    let mut file = example("gemma3").with("gemma3.attention.key_length", Value::number(32));
    file.pairs.retain(|(key, _)| !key.contains("block_count") && !key.contains("dimension_count"));
    let (file, _folder) = read(&file.with("gemma3.block_count", Value::number(62)));
    let config = settings::config(&file, ALL[3], &[]).expect("supported");
    assert_eq!(config["query_pre_attn_scalar"], json!(16));
    let mut file = example("gemma3");
    file.pairs.retain(|(key, _)| !key.contains("sliding_window"));
    let error = refusal(&file, &[]);
    assert!(error.contains("`gemma3.attention.sliding_window` is `missing`"), "{error}");
}

#[test]
fn experts_are_named_as_in_transformers() {
    for (file, index, model_type, renormalize) in [
        (with_experts(example("llama"), "llama"), 0, "mixtral", true),
        (example("qwen2moe"), 4, "qwen2_moe", false),
        (example("qwen3moe"), 5, "qwen3_moe", true),
        (example("olmoe"), 6, "olmoe", false),
    ] {
        let (file, _folder) = read(&file);
        let config = settings::config(&file, ALL[index], &[]).expect("supported");
        assert_eq!(config["model_type"], json!(model_type));
        assert_eq!(config["num_experts"], json!(3));
        assert_eq!(config["num_experts_per_tok"], json!(2));
        assert_eq!(config["norm_topk_prob"], json!(renormalize));
    }
    let error = refusal(&with_experts(example("qwen3"), "qwen3"), &[]);
    assert!(error.contains("`blk.0.ffn_down_exps.weight` is unknown"), "{error}");
    let error = refusal(&example("qwen2").with("qwen2.expert_count", Value::number(8)), &[]);
    assert!(error.contains("key `qwen2.expert_count` is `8`"), "{error}");
}

#[test]
fn what_might_change_answers_is_refused_by_key() {
    for (key, value, reason) in [
        ("llama.logit_scale", Value::float(2.0), "this key is not known"),
        ("llama.attention.sliding_window", Value::number(8), "this key is not known"),
        ("llama.expert_weights_scale", Value::float(2.0), "this key is not known"),
        ("llama.expert_count", Value::number(8), "`num_experts_per_tok`"),
        ("llama.rope.scaling.type", Value::text("yarn"), "`none` and `linear` are supported"),
        ("llama.attention.value_length", Value::number(8), "but 16 is supported here"),
        ("llama.attention.key_length", Value::number(32), "rope.dimension_count"),
        ("llama.attention.causal", Value::truth(false), "but true is supported"),
        ("split.count", Value::raw(2, &[2, 0]), "files of several parts"),
        ("other.key", Value::number(1), "this key is not known"),
    ] {
        let error = refusal(&example("llama").with(key, value), &[]);
        assert!(error.contains(reason), "{key}: {error}");
    }
    let wrong = |key: &str, value: Value| {
        let mut file = example("llama");
        file.pairs.retain(|(known, _)| known != key);
        refusal(&file.with(key, value), &[])
    };
    let each = Value::list(4, &[Value::number(4)]);
    let error = wrong("llama.attention.head_count", each);
    assert!(error.contains("`llama.attention.head_count` is `a list of 1`"), "{error}");
    let error = wrong("llama.vocab_size", Value::number(11));
    assert!(error.contains("`llama.vocab_size` is `11`, but 10"), "{error}");
    let error = wrong("llama.attention.head_count", Value::number(0));
    assert!(error.contains("head_count"), "{error}");
    let mut file = example("llama");
    file.pairs.retain(|(key, _)| key != "llama.block_count");
    assert!(refusal(&file, &[]).contains("`llama.block_count` is `missing`"));
}

#[test]
fn a_manifest_may_ignore_keys_and_tensors_by_name() {
    let key = "llama.attention.sliding_window";
    let file =
        example("llama").with(key, Value::number(8)).tensor("other.weight", &[8], 0, &[0; 32]);
    let error = refusal(&file, &[key]);
    assert!(error.contains("tensor `other.weight` is unknown"), "{error}");
    let ignored = [key, "other.weight"].map(str::to_owned);
    let (file, _folder) = read(&file);
    assert!(open(file, &ignored).is_ok());
}

#[test]
fn divisors_of_rotary_positions_are_numbers_above_0_for_each_pair() {
    let name = "rope_freqs.weight";
    let of = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let file = |architecture, values: &[f32]| {
        example(architecture).tensor(name, &[values.len() as u64], 0, &of(values))
    };
    let (known, _folder) = read(&file("llama", &[1.0; 8]));
    assert!(open(known, &[]).is_ok());
    for (architecture, values, reason) in [
        ("llama", vec![1.0; 7], "[7]"),
        ("llama", vec![0.0; 8], "`rope_freqs.weight` is `0`, but numbers above 0"),
        ("llama", vec![f32::NAN; 8], "not a number"),
        ("qwen2", vec![1.0; 8], "tensor `rope_freqs.weight` is unknown"),
    ] {
        let file = file(architecture, &values);
        let error = refusal(&file, &[]);
        assert!(error.contains(reason), "{error}");
        let (file, _folder) = read(&file);
        assert!(open(file, &[name.to_owned()]).is_ok(), "ignored by name");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    for name in ["gemma2", "mamba", ""] {
        let error = refusal(&example(name), &[]);
        assert!(error.contains("general.architecture") && error.contains("`gemma3`"), "{error}");
    }
    let mut file = example("llama");
    file.pairs.remove(0);
    assert!(refusal(&file, &[]).contains("`general.architecture` is `missing`"));
}

#[test]
fn no_key_stands_in_two_tables() {
    let tables = settings::known_keys();
    assert_eq!(tables.iter().collect::<BTreeSet<_>>().len(), tables.len());
}
