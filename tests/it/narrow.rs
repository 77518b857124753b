//! Blocks of encoders with a prefix of their heads and hidden units, and a base for a checkpoint.

use std::{fs, sync::Arc};

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tessera::{
    assembly::Family,
    family::PlanId,
    runtime::{Executor, SideInputs},
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
"#;

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

#[test]
fn narrower_blocks_agree_with_the_network_that_is_trained() {
    let pool = pool();
    let family = Arc::new(Family::load(&pool.path()).expect("loaded"));
    let executor = Executor::new(runtime(), family.clone());
    let encoding = Reference::read("l6").encoding();
    let run = |plan: &str| -> Vec<f32> {
        let plan = PlanId::parse(&family.graph, plan).expect("a plan");
        let sides = SideInputs::of_encoding(encoding.clone()).expect("inputs");
        let outputs = executor.run(&plan, &sides, &mut ()).expect("runs");
        outputs[0].as_f32().expect("f32").to_vec()
    };
    assert_eq!(run("n[0..6]"), run("l6[0..6]"), "the same blocks and embeddings");
    let reference = Reference::read("l6-narrow");
    let mixed = "n[0..6]{w33:0,w67:2,w33:3,w67:5}";
    for (plan, name) in [("n[0..6]{w67:0..6}", "narrow"), (mixed, "mixed")] {
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
