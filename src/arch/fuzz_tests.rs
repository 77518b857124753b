//! Fuzz tests of the readers of checkpoints' folders: configurations, and what
//! sentence-transformers writes. Each must be read or refused (`make fuzz`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use super::{
    Backbone, Form, PartId,
    encoder::sentence::Sentence,
    joint::SplitFile,
    keys::ConfigFile,
    open::{of_config, open},
};
use crate::{
    family::{AnchorSpec, CacheType, ExpertsSpec},
    module::Precision,
    pool::{Checkpoint, FitRecords},
    tensor::{
        MappedFile,
        mutate::{feed, feed_file},
    },
};

const WEIGHTS: &str = "model.safetensors";

fn references(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references").join(folder)
}

fn digest(path: &Path) -> String {
    MappedFile::open(path).expect("a file").sha256()
}

fn checkpoint(folder: &Path) -> Checkpoint {
    let sha256 = digest(&folder.join(WEIGHTS));
    Checkpoint::open(folder, Path::new(WEIGHTS), &sha256).expect("valid")
}

/// Builds every part of `network` in a few forms; each is built or refused.
fn build(network: &dyn Backbone) {
    let int8 = Form { precision: Precision::Int8, top_k: Some(1), ..Form::PLAIN };
    let cached = Form { is_step: true, has_norm: false, ..Form::PLAIN };
    let cached8 = Form { cache_type: CacheType::Int8, ..cached };
    for index in 0..network.layout().parts.len() {
        for form in [Form::PLAIN, int8, cached, cached8] {
            drop(network.build(PartId(index), &form));
        }
    }
    drop(network.dense(0));
}

/// Feeds changed configurations of `folders`, each with the weights of its own folder.
fn feed_configs(folders: &[&str]) {
    let folders: Vec<PathBuf> = folders.iter().map(|folder| references(folder)).collect();
    let read = |folder: &PathBuf| fs::read(folder.join("config.json")).expect("read");
    let seeds: Vec<Vec<u8>> = folders.iter().map(read).collect();
    let checkpoints: Vec<Checkpoint> = folders.iter().map(|folder| checkpoint(folder)).collect();
    let mut case = 0;
    feed(&seeds, |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let file = ConfigFile { path: Path::new("config.json"), text: &text, ignored: &[] };
        let weights = checkpoints[case % checkpoints.len()].clone();
        case += 1;
        if let Ok(network) = of_config(file, weights, || Ok(Sentence::default())) {
            build(&*network);
        }
    });
}

#[test]
fn configurations_of_encoders() {
    feed_configs(&["sentence/cls", "sentence/dense"]);
}

#[test]
fn configurations_of_mpnet() {
    let config = json!({
        "model_type": "mpnet", "vocab_size": 10, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 48, "max_position_embeddings": 16,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "relative_attention_num_buckets": 32,
    });
    let weights = checkpoint(&references("sentence/cls"));
    feed(&[config.to_string().into_bytes()], |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let file = ConfigFile { path: Path::new("config.json"), text: &text, ignored: &[] };
        if let Ok(network) = of_config(file, weights.clone(), || Ok(Sentence::default())) {
            build(&*network);
        }
    });
}

#[test]
fn configurations_of_image_networks() {
    feed_configs(&["vit/hf-vit", "vit/hf-deit", "vit/timm", "vit/timm-deit3", "vit/timm-silu"]);
}

#[test]
fn configurations_of_decoders() {
    feed_configs(&[
        "moe/mixtral",
        "moe/olmoe",
        "moe/qwen2_moe",
        "moe/qwen3_moe",
        "moe/granitemoe",
        "moe/granitemoeshared",
        "moe/moduleformer",
    ]);
}

/// Copies the files of `from` to `to`, and returns their digests by path.
fn copy(from: &Path, to: &Path, below: &Path, digests: &mut BTreeMap<PathBuf, String>) {
    fs::create_dir_all(to.join(below)).expect("created");
    for entry in fs::read_dir(from.join(below)).expect("a folder") {
        let path = below.join(entry.expect("an entry").file_name());
        if from.join(&path).is_dir() {
            copy(from, to, &path, digests);
        } else {
            fs::copy(from.join(&path), to.join(&path)).expect("copied");
            digests.insert(path.clone(), digest(&to.join(&path)));
        }
    }
}

/// Returns an anchor whose folder is that of the family; the digests are those of the weights.
fn anchor(digests: BTreeMap<PathBuf, String>) -> AnchorSpec {
    let weights = |path: &Path| path.extension().is_some_and(|end| end == "safetensors");
    AnchorSpec {
        folder: Some(PathBuf::new()),
        sha256: digests.into_iter().filter(|(path, _)| weights(path)).collect(),
        ..toml::from_str("sha256 = {}").expect("an anchor")
    }
}

#[test]
fn folders_of_sentence_transformers() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut digests = BTreeMap::new();
    copy(&references("sentence/dense"), folder.path(), Path::new(""), &mut digests);
    let spec = anchor(digests);
    for name in [
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
    ] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).expect("read");
        feed_file(std::slice::from_ref(&whole), &path, || {
            if let Ok(sentence) = Sentence::read(folder.path(), &spec) {
                drop(sentence.head(24, false));
            }
        });
        fs::write(&path, whole).expect("written");
    }
}

#[test]
fn files_of_experts() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut digests = BTreeMap::new();
    copy(&references("sentence/cls"), folder.path(), Path::new(""), &mut digests);
    let anchor = AnchorSpec { sha256: digests.clone(), ..anchor(digests) };
    let network = open(folder.path(), "a", &anchor).expect("valid");
    let dense = network.dense(0).expect("valid").expect("a feed-forward part");
    let spec: ExpertsSpec =
        toml::from_str("anchor = \"a\"\nnum_experts = 4\ntop_k = [1, 2]\nrouter = \"learned\"")
            .expect("valid");
    let units: Vec<u8> = (0..48_i32).flat_map(i32::to_le_bytes).collect();
    let gate = vec![0; 4 * 24 * 4];
    let tensors = [
        ("block.0.units", TensorView::new(Dtype::I32, vec![4, 12], &units).expect("valid")),
        ("block.0.gate.weight", TensorView::new(Dtype::F32, vec![4, 24], &gate).expect("valid")),
    ];
    let seed = safetensors::serialize(tensors, None).expect("written");
    let path = folder.path().join("fits/a.experts4.safetensors");
    fs::create_dir(folder.path().join("fits")).expect("created");
    feed_file(&[seed], &path, || {
        let record = json!({"sha256": digest(&path), "samples": 1, "held_out_r2": 0.0, "data": "",
                            "date": ""});
        let experts = json!({"maps": {}, "experts": {"fits/a.experts4.safetensors": record}});
        let records: FitRecords = serde_json::from_value(experts).expect("records");
        let Ok(Some(file)) = SplitFile::open(folder.path(), &records, &spec) else { return };
        drop(file.modules(0, &dense));
    });
}
