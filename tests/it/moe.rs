//! Language models with experts against what transformers computes, or, for ModuleFormer, against
//! what its formulas give in float64: `tools/moe_reference.py`.

use serde_json::{Value, json};
use tessera::{
    family::PlanId,
    input::Encoding,
    runtime::{Executor, SideInputs},
    tensor::Tensor,
};

use crate::support::language::{CHECKPOINTS, Model, WEIGHTS, reference, rows};

/// What differences may be: so much, and so much times the value expected.
const TOLERANCE: f64 = 1e-4;

/// Runs a plan; returns logits and last hidden states.
fn run(executor: &mut Executor, plan: &str, encoding: Encoding) -> [Tensor; 2] {
    let family = executor.family().clone();
    let path = PlanId::parse(&family.graph, plan).unwrap_or_else(|e| panic!("{e}"));
    let sides = SideInputs::of_encoding(encoding).expect("tokens");
    let outputs = executor.run(&path, &sides, &mut ()).unwrap_or_else(|e| panic!("{plan}: {e}"));
    outputs.try_into().expect("two outputs")
}

fn best<T: Copy + PartialOrd>(row: &[T]) -> usize {
    (1..row.len()).fold(0, |best, index| if row[index] > row[best] { index } else { best })
}

/// Compares a plan's outputs with a case's reference.
fn check(executor: &mut Executor, plan: &str, name: &str) {
    let reference = reference(name);
    let encoding = reference.encoding();
    let mask = encoding.attention_mask.clone();
    let outputs = run(executor, plan, encoding);
    for (output, found) in ["logits", "last_hidden_state"].into_iter().zip(&outputs) {
        let (shape, expected) = reference.tensor(output);
        assert_eq!(found.shape(), shape, "{name}: {output}");
        let found = rows(found.as_f32().expect("f32"), &mask);
        let expected = rows(expected, &mask);
        let pairs = || found.iter().flatten().zip(expected.iter().flatten());
        let far = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs();
        let largest = pairs().map(far).fold(0.0, f64::max);
        println!("{name}: {output}: largest difference {largest:.2e}");
        let is_near = |(found, expected): (&f32, &f64)| {
            far((found, expected)) <= TOLERANCE + TOLERANCE * expected.abs()
        };
        assert!(pairs().all(is_near), "{name}: {output}: {largest:.2e}");
        if output == "logits" {
            let greedy: Vec<usize> = found.iter().map(|row| best(row)).collect();
            let wanted: Vec<usize> = expected.iter().map(|row| best(row)).collect();
            assert_eq!(greedy, wanted, "{name}: the best words");
        }
    }
}

#[test]
fn checkpoints_of_transformers_give_its_logits_and_last_hidden_states() {
    for (name, num_blocks) in CHECKPOINTS {
        check(&mut Model::read(name).executor(), &format!("a[0..{num_blocks}]"), name);
    }
}

#[test]
fn moduleformer_gives_what_its_formulas_give_in_float64() {
    for (name, num_blocks) in [("moduleformer", 2), ("moduleformer-odd", 3)] {
        check(&mut Model::read(name).executor(), &format!("a[0..{num_blocks}]"), name);
    }
}

/// Asserts that outputs are the same but for the order of additions.
fn assert_same(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-5, "{what}: {found} is not {expected}");
    }
}

#[test]
fn a_batch_equals_its_texts_and_padding_changes_nothing() {
    for (name, num_blocks) in
        [("mixtral-sliding", 2), ("olmoe", 2), ("qwen2_moe", 4), ("moduleformer", 2)]
    {
        let plan = &format!("a[0..{num_blocks}]");
        let model = Model::read(name);
        let mut executor = model.executor();
        let batch = reference(name).encoding();
        let together = run(&mut executor, plan, batch.clone());
        for index in 0..batch.batch {
            let alone = batch.rows(index..index + 1);
            let mut longer = alone.clone();
            longer.tokens += 3;
            longer.input_ids.extend([5, 6, 7]);
            longer.attention_mask.extend([0; 3]);
            let outputs = [alone, longer].map(|text| {
                let mask = text.attention_mask.clone();
                run(&mut executor, plan, text).map(|o| rows(o.as_f32().expect("f32"), &mask))
            });
            for (output, whole) in together.iter().enumerate() {
                let whole = whole.as_f32().expect("f32");
                let own = whole.len() / batch.batch;
                let mask = &batch.attention_mask[index * batch.tokens..][..batch.tokens];
                let expected = rows(&whole[index * own..][..own], mask);
                assert_same(&outputs[0][output], &expected, &format!("{name}: alone"));
                assert_same(&outputs[1][output], &expected, &format!("{name}: padded"));
            }
        }
    }
}

#[test]
fn other_numbers_of_experts_are_plans_of_their_own() {
    let encoding = reference("mixtral").encoding();
    let mask = encoding.attention_mask.clone();
    let outputs = |executor: &mut Executor, plan: &str| {
        run(executor, plan, encoding.clone()).map(|o| rows(o.as_f32().expect("f32"), &mask))
    };
    let offering = Model::read("mixtral").with_top_k(&[1, 8]);
    let mut executor = offering.executor();
    for top_k in [1, 8] {
        let mut model = Model::read("mixtral");
        model.set("num_experts_per_tok", top_k.into());
        let expected = outputs(&mut model.executor(), "a[0..2]");
        let found = outputs(&mut executor, &format!("a[0..2]{{k{top_k}.mlp:0..2}}"));
        for (found, expected) in found.iter().zip(&expected) {
            assert_same(found, expected, &format!("k = {top_k}"));
        }
    }
    let own = outputs(&mut executor, "a[0..2]");
    let one = outputs(&mut executor, "a[0..2]{k1.mlp:0..2}");
    let mut pairs = own[0].iter().flatten().zip(one[0].iter().flatten());
    assert!(pairs.any(|(own, one)| (own - one).abs() > 0.01), "fewer experts are another answer");
    let residency = executor.residency();
    assert!(residency.num_modules <= 2 + 2 + 2 + 16, "forms share their experts: {residency:?}");
}

#[test]
fn some_experts_by_themselves_are_a_smaller_checkpoint() {
    let kept = [1, 3, 4, 6];
    let mut smaller = Model::read("mixtral");
    smaller.set("num_local_experts", kept.len().into());
    smaller.change("model.safetensors", |tensors| {
        for (name, (dtype, shape, bytes)) in std::mem::take(tensors) {
            let expert = name.split_once(".experts.").map(|(before, after)| {
                let (number, part) = after.split_once('.').expect("a number and a part");
                (before.to_owned(), number.parse::<usize>().expect("a number"), part.to_owned())
            });
            if let Some((before, number, part)) = expert {
                if let Some(new) = kept.iter().position(|kept| *kept == number) {
                    tensors.insert(format!("{before}.experts.{new}.{part}"), (dtype, shape, bytes));
                }
            } else if name.ends_with("gate.weight") {
                let row = bytes.len() / shape[0];
                let rows = kept.iter().flat_map(|kept| bytes[kept * row..][..row].to_vec());
                tensors.insert(name, (dtype, vec![kept.len(), shape[1]], rows.collect()));
            } else {
                tensors.insert(name, (dtype, shape, bytes));
            }
        }
    });
    let reference = reference("mixtral");
    let encoding = reference.encoding();
    let mask = encoding.attention_mask.clone();
    let outputs = |executor: &mut Executor, plan: &str| {
        run(executor, plan, encoding.clone()).map(|o| rows(o.as_f32().expect("f32"), &mask))
    };
    let offering = Model::read("mixtral").with_experts(&kept);
    let mut executor = offering.executor();
    let found = outputs(&mut executor, "a[0..2]{set.mlp:0..2}");
    let expected = outputs(&mut smaller.executor(), "a[0..2]");
    for (found, expected) in found.iter().zip(&expected) {
        assert_same(found, expected, "four experts");
    }
    let family = executor.family();
    let bytes = |plan: &str| -> u64 {
        let plan = PlanId::parse(&family.graph, plan).expect("a plan");
        plan.path.iter().map(|id| family.weight_bytes(*id)).sum()
    };
    let (whole, some) = (bytes("a[0..2]"), bytes("a[0..2]{set.mlp:0..2}"));
    // Three matrices of 24 by 32 for each of four experts of two blocks are not there.
    assert_eq!(whole - some, 2 * 4 * 3 * 24 * 32 * 4);
}

#[test]
fn attention_s_experts_are_routed_by_other_numbers_as_well() {
    let model = Model::read("moduleformer").with_top_k(&[1, 5]);
    let mut executor = model.executor();
    for plan in ["a[0..2]{k1:0..2}", "a[0..2]{k5.attn:0..2}", "a[0..2]{k1.attn:1}"] {
        let encoding = reference("moduleformer").encoding();
        let mask = encoding.attention_mask.clone();
        for output in run(&mut executor, plan, encoding) {
            let rows = rows(output.as_f32().expect("f32"), &mask);
            assert!(rows.iter().flatten().all(|value| value.is_finite()), "{plan}");
        }
    }
}

#[test]
fn the_experts_of_a_fused_tensor_are_places_in_its_file() {
    let family = Model::read("mixtral-fused").load().expect("loaded");
    let module = family.graph.modules().iter().position(|m| m.name == "a.block.1.mlp");
    let networks = family.networks_of(tessera::family::ModuleId(module.expect("a module")));
    assert_eq!(networks.len(), 1 + 8);
    let bytes = networks[1..].iter().map(|index| family.network(*index).weight_bytes());
    assert_eq!(bytes.collect::<Vec<_>>(), [3 * 24 * 32 * 4; 8]);
    for index in networks {
        let network = family.network(index);
        assert!(network.files().any(|file| file == "anchors/a/model.safetensors"));
        let graph = network.model().graph.as_ref().expect("a graph");
        let inside = graph.initializer.iter().filter_map(|tensor| tensor.raw_data.as_ref());
        assert!(inside.map(|raw| raw.len()).sum::<usize>() < 100, "weights stay in their file");
    }
}

const ROUTER: &str = "model.layers.1.block_sparse_moe.gate.weight";

#[test]
fn a_router_with_another_number_of_outputs_is_refused_by_name() {
    let mut model = Model::read("mixtral");
    model.change(WEIGHTS, |tensors| {
        let (_, shape, bytes) = tensors.get_mut(ROUTER).expect("a router");
        shape[0] = 7;
        bytes.truncate(7 * 32 * 4);
    });
    let refusal = model.refusal();
    assert!(refusal.contains(ROUTER) && refusal.contains("[7, 32]"), "{refusal}");
}

#[test]
fn a_score_that_is_no_number_is_refused_by_name_when_the_family_is_loaded() {
    for (case, name) in [
        ("mixtral", ROUTER),
        ("olmoe", "model.layers.1.mlp.gate.weight"),
        ("qwen2_moe", "model.layers.3.mlp.gate.weight"),
        ("qwen3_moe", "model.layers.0.mlp.gate.weight"),
        ("granitemoe", "model.layers.2.block_sparse_moe.router.layer.weight"),
        ("granitemoeshared", "model.layers.1.block_sparse_moe.router.layer.weight"),
        ("moduleformer", "transformer.h.0.attn.q_proj.gate.w_gate.3.weight"),
        ("moduleformer", "transformer.h.1.mlpf.gate.w_gate.0.bias"),
    ] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut model = Model::read(case);
            model.change(WEIGHTS, |tensors| {
                let (_, _, bytes) = tensors.get_mut(name).expect("a router");
                bytes[4..8].copy_from_slice(&value.to_le_bytes());
            });
            let refusal = model.refusal();
            assert!(refusal.contains(name) && refusal.contains("not a number"), "{refusal}");
        }
    }
}

#[test]
fn an_expert_that_is_missing_or_of_another_shape_is_refused_by_name() {
    let name = "model.layers.0.block_sparse_moe.experts.5.w3.weight";
    let mut model = Model::read("mixtral");
    model.change(WEIGHTS, |tensors| drop(tensors.remove(name)));
    let refusal = model.refusal();
    assert!(refusal.contains(&format!("there is no tensor `{name}`")), "{refusal}");

    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let mut model = Model::read("mixtral-fused");
    model.change(WEIGHTS, |tensors| {
        let (_, shape, bytes) = tensors.get_mut(name).expect("experts");
        shape[0] = 7;
        bytes.truncate(7 * 48 * 32 * 4);
    });
    let refusal = model.refusal();
    assert!(refusal.contains(name) && refusal.contains("[7, 48, 32]"), "{refusal}");
}

#[test]
fn a_head_beside_a_tied_one_is_read_if_it_is_the_embeddings() {
    let mut model = Model::read("mixtral");
    model.change(WEIGHTS, |tensors| {
        let embeddings = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), embeddings);
    });
    model.set("tie_word_embeddings", true.into());
    model.load().expect("one matrix under two names");
}

#[test]
fn more_experts_a_token_than_there_are_is_refused() {
    for (case, key, value) in [
        ("mixtral", "num_experts_per_tok", 9),
        ("qwen2_moe", "num_experts_per_tok", 0),
        ("granitemoe", "num_experts_per_tok", 7),
        ("moduleformer", "k_att", 6),
        ("moduleformer", "k_mlp", 8),
    ] {
        let mut model = Model::read(case);
        model.set(key, value.into());
        let refusal = model.refusal();
        assert!(refusal.contains(&format!("key `{key}` is `{value}`")), "{refusal}");
    }
    for (experts, reason) in [(vec![1, 8], "none of 8"), (vec![3, 1], "in ascending order")] {
        let refusal = Model::read("mixtral").with_experts(&experts).refusal();
        assert!(refusal.contains(reason), "{refusal}");
    }
    let refusal = Model::read("mixtral").with_top_k(&[9]).refusal();
    assert!(refusal.contains("9 ways are to be taken of 8"), "{refusal}");
}

const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00002-of-00004.safetensors";

#[test]
fn an_index_that_names_what_is_not_there_is_refused() {
    let mut model = Model::read("mixtral-sharded-bf16");
    model.files.remove(SHARD);
    let refusal = model.refusal();
    let named = format!("names `{SHARD}`, which is not there");
    assert!(refusal.contains(INDEX) && refusal.contains(&named), "{refusal}");

    let name = "model.layers.0.block_sparse_moe.experts.0.w1.weight";
    let mut model = Model::read("mixtral-sharded-bf16");
    model.change(SHARD, |tensors| drop(tensors.remove(name)));
    let refusal = model.refusal();
    let named = format!("{SHARD}: there is no tensor `{name}`");
    assert!(refusal.contains(&named), "{refusal}");

    let mut model = Model::read("mixtral-sharded-bf16");
    let text = String::from_utf8(model.files[INDEX].clone()).expect("text");
    let outside = text.replace(SHARD, "../a/other.safetensors");
    model.files.insert(INDEX.to_owned(), outside.into_bytes());
    let refusal = model.refusal();
    assert!(refusal.contains("names `../a/other.safetensors`"), "{refusal}");

    model.files.insert(INDEX.to_owned(), b"{\"weight_map\": []}".to_vec());
    assert!(model.refusal().contains("is not an index of safetensors files"));
}

#[test]
fn configurations_that_are_not_supported_are_refused_by_key() {
    for (case, key, value) in [
        ("qwen2_moe", "use_sliding_window", Value::from(true)),
        ("mixtral", "hidden_act", "gelu".into()),
        ("mixtral", "tie_word_embeddings", true.into()),
        ("moduleformer", "tie_word_embeddings", true.into()),
        ("granitemoe", "logits_scaling", 0.into()),
        ("olmoe", "rope_theta", 0.into()),
        ("mixtral", "num_key_value_heads", 3.into()),
        ("mixtral", "head_dim", 7.into()),
        ("moduleformer", "gate_type", "gmm".into()),
        ("moduleformer", "n_head", 4.into()),
    ] {
        let mut model = Model::read(case);
        model.set(key, value);
        let refusal = model.refusal();
        assert!(refusal.contains(&format!("key `{key}`")), "{refusal}");
    }
    let mut model = Model::read("mixtral");
    model.set("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4}));
    assert!(model.refusal().contains("key `rope_parameters.rope_type` is `yarn`"));
}
