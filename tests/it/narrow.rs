//! Encoders whose blocks have a prefix of their heads and hidden units, or fewer tokens, and a base
//! for a checkpoint.

use std::{fs, sync::Arc};

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tessera::{
    assembly::Family,
    family::PlanId,
    fit::export_plan,
    input::Encoding,
    onnx::read_model,
    runtime::{Executor, SideInputs, WholeModel},
    tensor::{Tensor, TensorData},
};

use crate::{
    pool::{Pool, text_manifest},
    support::{Reference, assert_close, root, runtime},
};

/// Blocks of l6, whose embeddings are those of another file.
const ANCHOR: &str = r#"
[anchors.n]
folder = "anchors/n"
base = "anchors/l6/model.safetensors"
tokenizer = "anchors/l6/tokenizer.json"
aligned = true
variants = ["int8", "w67+int8"]
widths = [
  { name = "w33", heads = 4, hidden = 512 },
  { name = "w67", heads = 8, hidden = 1024 },
]
merges = [
  { every = 2, before = [1, 4] },
  { every = 3, before = [0] },
  { every = 4, before = [2] },
]
"#;

/// Plans of narrower blocks and of merged tokens, each with the name of its reference.
const FORMS: [(&str, &str); 5] = [
    ("n[0..6]{w67:0..6}", "narrow"),
    ("n[0..6]{w33:0,w67:2,w33:3,w67:5}", "mixed"),
    ("n[0..2]>n[2..6]{via:merge4}", "merged 4 before 2"),
    ("n[0..1]>n[1..6]{via:merge2}", "merged 2 before 1"),
    ("n[0..0]>n[0..6]{via:merge3,w67:0..6}", "merged 3 before 0, narrow"),
];

/// Returns a pool with l6, and with its blocks once more in a checkpoint of their own.
fn pool() -> Pool {
    let source = root().join("models/text");
    let manifest = text_manifest(&source, "l6").expect("a manifest");
    let pool = Pool::new(&source, &manifest, "").expect("a pool");
    let anchors = pool.path().join("anchors");
    fs::create_dir(anchors.join("n")).expect("created");
    fs::copy(anchors.join("l6/config.json"), anchors.join("n/config.json")).expect("copied");
    let weights = fs::read(anchors.join("l6/model.safetensors")).expect("fetched");
    let whole = SafeTensors::deserialize(&weights).expect("valid");
    let blocks = whole.tensors().into_iter().filter(|(name, _)| name.contains("encoder.layer"));
    let own = safetensors::serialize(blocks.collect::<Vec<_>>(), None).expect("serialized");
    fs::write(anchors.join("n/model.safetensors"), own).expect("written");
    let mut anchor = format!("{ANCHOR}\n[anchors.n.sha256]\n");
    let base =
        ["l6/model.safetensors", "l6/tokenizer.json", "n/config.json", "n/model.safetensors"];
    for file in base {
        let digest = Sha256::digest(fs::read(anchors.join(file)).expect("read"));
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        anchor += &format!("\"anchors/{file}\" = \"{digits}\"\n");
    }
    fs::write(pool.path().join("family.toml"), format!("{manifest}\n{anchor}")).expect("written");
    pool
}

fn run(executor: &Executor, plan: &str, encoding: Encoding) -> Vec<f32> {
    let plan = PlanId::parse(&executor.family().graph, plan).expect("a plan");
    let sides = SideInputs::of_encoding(encoding).expect("inputs");
    let outputs = executor.run(&plan, &sides, &mut ()).expect("runs");
    outputs[0].as_f32().expect("f32").to_vec()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Returns the tokens `ids` of a text, filled up to `tokens`.
fn padded(ids: &[i64], tokens: usize) -> Encoding {
    let rest = vec![0; tokens - ids.len()];
    let attention_mask = [vec![1; ids.len()], rest.clone()].concat();
    let input_ids = [ids, &rest].concat();
    Encoding { batch: 1, tokens, input_ids, attention_mask }
}

#[test]
fn a_text_whose_tokens_are_merged_has_its_own_answer_however_long_others_are() {
    let pool = pool();
    let family = Arc::new(Family::load(&pool.path()).expect("loaded"));
    let executor = Executor::new(runtime(), family);
    let ids = [101, 2023, 2003, 2019, 2590, 7099, 102];
    for plan in ["n[0..1]>n[1..6]{via:merge2}", "n[0..2]>n[2..6]{via:merge4,int8:2..6}"] {
        for length in 1..=ids.len() {
            let alone = run(&executor, plan, padded(&ids[..length], length));
            let norm = alone.iter().map(|value| value * value).sum::<f32>();
            assert!((norm - 1.0).abs() < 1e-5, "{length} tokens: {norm}");
            for tokens in [length + 1, 2 * length + 3, 64] {
                let among = run(&executor, plan, padded(&ids[..length], tokens));
                assert_close(&among, &doubles(&alone), 2e-6, plan);
            }
        }
    }
}

#[test]
fn a_merged_plan_as_one_file_gives_the_same() {
    let pool = pool();
    let family = Arc::new(Family::load(&pool.path()).expect("loaded"));
    let executor = Executor::new(runtime(), family.clone());
    let id = "n[0..2]>n[2..6]{via:merge4}";
    let plan = PlanId::parse(&family.graph, id).expect("a plan");
    let model = export_plan(&family, &plan).expect("exported");
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("net.onnx"), &model).expect("written");
    let read = read_model(folder.path(), "net.onnx".as_ref()).expect("ordered");
    let encoding = Reference::read("l6").encoding();
    let shape = vec![encoding.batch, encoding.tokens];
    let value = |values: &[i64]| {
        Tensor::new(shape.clone(), TensorData::I64(values.to_vec())).expect("a tensor")
    };
    let (ids, mask) = (value(&encoding.input_ids), value(&encoding.attention_mask));
    let inputs = [("input_ids", &ids), ("attention_mask", &mask)];
    let wanted = ["embedding".to_owned()];
    let whole = WholeModel::load(&runtime(), folder.path(), "whole", &read, &wanted);
    let found = whole.expect("loads").run(&inputs, &wanted).expect("runs").remove(0);
    let expected = doubles(&run(&executor, id, encoding));
    assert_close(found.as_f32().expect("f32"), &expected, 1e-6, id);
}

#[test]
fn mergings_that_make_no_sense_are_refused() {
    let pool = pool();
    let path = pool.path().join("family.toml");
    let manifest = fs::read_to_string(&path).expect("read");
    let told = |after: &str| {
        let before = "{ every = 3, before = [0] }";
        assert!(manifest.contains(before));
        fs::write(&path, manifest.replacen(before, after, 1)).expect("written");
        Family::load(&pool.path()).map(drop).expect_err(after).to_string()
    };
    for (every, before) in [(1, "0"), (17, "0"), (2, "0"), (3, ""), (3, "2, 1"), (3, "1, 1")] {
        let error = told(&format!("{{ every = {every}, before = [{before}] }}"));
        assert!(error.contains("`anchors.n.merges`"), "{error}");
        assert!(error.contains("one token in 2 to 16"), "{error}");
    }
    let error = told("{ every = 3, before = [6] }");
    assert!(error.contains("`n` has 6 blocks"), "{error}");
    let error = told("{ every = 3, before = [0], after = [1] }");
    assert!(error.contains("after"), "{error}");
}

#[test]
fn narrower_blocks_agree_with_the_network_that_is_trained() {
    let pool = pool();
    let family = Arc::new(Family::load(&pool.path()).expect("loaded"));
    let executor = Executor::new(runtime(), family);
    let encoding = Reference::read("l6").encoding();
    let run = |plan: &str| run(&executor, plan, encoding.clone());
    assert_eq!(run("n[0..6]"), run("l6[0..6]"), "the same blocks and embeddings");
    let reference = Reference::read("l6-forms");
    for (plan, name) in FORMS {
        let (_, expected) = reference.tensor(name);
        assert_close(&run(plan), expected, 1e-5, plan);
    }
    let cosine =
        |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
    let (narrow, both) = (run("n[0..6]{w67:0..6}"), run("n[0..6]{w67+int8:0..6}"));
    for (one, other) in narrow.chunks(384).zip(both.chunks(384)) {
        let found = cosine(one, other);
        assert!(found > 0.98 && one != other, "8 bit: {found}");
    }
}

#[test]
fn a_base_must_be_known_by_its_digest_and_go_with_a_folder() {
    let pool = pool();
    let path = pool.path().join("family.toml");
    let manifest = fs::read_to_string(&path).expect("read");
    let told = |before: &str, after: &str| {
        assert!(manifest.contains(before));
        fs::write(&path, manifest.replacen(before, after, 1)).expect("written");
        Family::load(&pool.path()).map(drop).expect_err(after).to_string()
    };
    let error = told("base = \"anchors/l6/model", "base = \"anchors/l6/other");
    assert!(error.contains("anchors/l6/other.safetensors"), "{error}");
    let error = told("base = \"anchors/l6/model", "base = \"../l6/model");
    assert!(error.contains("stay inside the family's folder"), "{error}");
    let error = told("base = \"anchors/l6/model.safetensors\"\n", "");
    assert!(error.contains("embeddings."), "{error}");
    let onnx = "gguf = \"anchors/n/a.gguf\"\n";
    let error = told("folder = \"anchors/n\"\n", onnx);
    assert!(error.contains("a base goes with a `folder`"), "{error}");
    let wide = told("heads = 8, hidden = 1024", "heads = 13, hidden = 1024");
    assert!(wide.contains("`anchors.n.widths`"), "{wide}");
}
