//! Fuzz test of whole families: a changed manifest over good files must be loaded or refused
//! (`make fuzz`).

use std::{fs, path::Path};

use super::Family;
use crate::{
    family::MANIFEST_FILE,
    tensor::{MappedFile, mutate::feed_file},
};

const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

fn manifest(folder: &Path) -> String {
    let digest = |name: &&str| {
        let sha256 = MappedFile::open(&folder.join(name)).expect("a file").sha256();
        format!("\"{name}\" = \"{sha256}\"\n")
    };
    let digests: String = FILES.iter().map(digest).collect();
    format!(
        r#"format = 1
name = "text"
task = "sentence-embedding"
description = "Small."
license = "Apache-2.0"
reference = "a"

[limits]
max_tokens = 16
max_batch = 8

[output]
name = "embedding"
width = 24

[quality]
metric = "recall@10"
file = "quality.json"

[anchors.a]
folder = ""
tokenizer = "tokenizer.json"
variants = ["int8", "skip"]
depths = [1]

[anchors.a.sha256]
{digests}
[[maps]]
from = "a.0"
to = "a.2"
form = "tokens"
features = ["token", "previous", "next"]

[[maps]]
from = "a.1"
to = "out"
form = "pooled"
features = ["first", "mean"]

[[experts]]
anchor = "a"
num_experts = 4
top_k = [1, 2]
router = "average"
"#
    )
}

#[test]
fn families() {
    let pool = tempfile::tempdir().expect("a folder");
    let folder = pool.path().join("text");
    fs::create_dir(&folder).expect("created");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references/sentence/cls");
    for name in FILES {
        fs::copy(from.join(name), folder.join(name)).expect("copied");
    }
    let seed = manifest(&folder).into_bytes();
    let path = folder.join(MANIFEST_FILE);
    fs::write(&path, &seed).expect("written");
    let family = Family::load(&folder);
    family.expect("good before it is changed");
    feed_file(&[seed], &path, || drop(Family::load(&folder)));
}
