//! Fuzz test of the manifest's reader, which must read or refuse every input: `make fuzz`.

use super::{MANIFEST_FILE, Manifest};
use crate::tensor::mutate::feed_file;

#[test]
#[ignore = "takes minutes: make fuzz"]
fn manifests() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let folder = pool.path().join("text");
    std::fs::create_dir(&folder).expect("created");
    let seeds = [
        include_bytes!("../../models/text/family.toml").to_vec(),
        include_bytes!("../../models/fashion/family.toml").to_vec(),
    ];
    feed_file(&seeds, &folder.join(MANIFEST_FILE), || drop(Manifest::read(&folder)));
}
