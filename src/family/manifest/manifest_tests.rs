//! Tests of reading manifests.

use super::*;
use crate::family::{Feature, MapForm};

const GOOD: &str = r#"
    name = "tiny"
    task = "sentence-embedding"
    description = "A test."
    license = "Apache-2.0"
    reference = "a"
    output = { name = "embedding", width = 8 }
    quality = { metric = "recall@10", file = "quality.json" }
    [anchors.a]
    folder = "anchors/a"
    tokenizer = "anchors/a/tokenizer.json"
    sha256 = {}
    [[maps]]
    from = "a.1"
    to = "out"
    form = "pooled"
    features = ["mean", "first"]
"#;

fn read(text: &str) -> Result<Manifest, FamilyError> {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let folder = pool.path().join("tiny");
    std::fs::create_dir(&folder).expect("created");
    std::fs::write(folder.join("family.toml"), text).expect("written");
    Manifest::read(&folder)
}

#[test]
fn a_manifest_is_read() {
    let manifest = read(GOOD).expect("valid");
    assert_eq!(manifest.limits.max_tokens, 256);
    assert_eq!(manifest.maps[0].form, MapForm::Pooled);
    assert_eq!(manifest.maps[0].features, [Feature::Mean, Feature::First]);
}

#[test]
fn wrong_keys_and_values_are_named() {
    for (from, to, named) in [
        ("task =", "tsak =", "tsak"),
        ("reference = \"a\"", "reference = \"b\"", "`reference` is `b`"),
        ("name = \"tiny\"", "name = \"big\"", "`name` is `big`"),
        ("width = 8", "width = 0", "output.width"),
        ("metric =", "floor = 1.5, metric =", "quality.floor"),
        ("sha256 = {}", "sha256 = {}\nvariants = [\"int4\"]", "int4"),
        ("folder = \"anchors/a\"", "folder = \"../a\"", "../a"),
        ("folder = \"anchors/a\"", "folder = \"/etc\"", "/etc"),
        ("folder = \"anchors/a\"", "", "exactly one of"),
        ("file = \"quality.json\"", "file = \"../q.json\"", "quality.file"),
        ("metric = \"recall@10\"", "metric = \"recall@11\"", "recall@11"),
        ("width = 8", "width = 8, labels = [\"cat\"]", "output.labels"),
        ("sha256 = {}", "sha256 = {}\nwidths = [{ name = \"via\", heads = 1, hidden = 1 }]", "via"),
        ("\"mean\"", "\"median\"", "median"),
        ("features", "fetaures", "features"),
        ("name = \"tiny\"", "name = ", "TOML parse error"),
    ] {
        let error = read(&GOOD.replace(from, to)).expect_err(to).to_string();
        assert!(error.contains(named), "{to}: {error}");
    }
}
