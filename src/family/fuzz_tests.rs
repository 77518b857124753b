//! Fuzz tests of the room's readers, which must read or refuse every input: `make fuzz`.

use super::{
    MANIFEST_FILE, Manifest, PlanId, migrated, name_with_digest, name_without_digest, plan_id,
};
use crate::tensor::mutate::{feed, feed_file};

#[test]
fn manifests() {
    let pool = tempfile::tempdir().expect("a temporary folder");
    let folder = pool.path().join("text");
    std::fs::create_dir(&folder).expect("created");
    let path = folder.join(MANIFEST_FILE);
    let seeds = [
        include_bytes!("../../models/text/family.toml").to_vec(),
        include_bytes!("../../models/fashion/family.toml").to_vec(),
        include_bytes!("../../tests/pool/fashion/family.toml").to_vec(),
    ];
    feed_file(&seeds, &path, || {
        let read = Manifest::read(&folder);
        let text = String::from_utf8_lossy(&std::fs::read(&path).expect("read")).into_owned();
        // A manifest of an older format says the same once it is migrated, which is once enough.
        if let Ok(Some(new)) = migrated(&path, &text) {
            assert_eq!(migrated(&path, &new).ok(), Some(None), "{new}");
            std::fs::write(&path, new).expect("written");
            assert_eq!(Manifest::read(&folder).is_ok(), read.is_ok());
        }
    });
}

#[test]
fn plan_ids() {
    let graph = plan_id::tests::graph();
    let seeds = [
        "a[0..1]>b[1..3]{int8:1..3}",
        "b[0..2]{skip.attention:0,int8.mlp:1}",
        "b[0..3]{exit:deep}@lora=a@dims=128",
        "a[0..1]>b[1..2+]>b[2..3]{via:lite}",
        "b[0..0+]>b[2..3]",
    ];
    feed(&seeds.map(|seed| seed.as_bytes().to_vec()), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let Ok(plan) = PlanId::parse(&graph, &text) else { return };
        let id = PlanId::of(&graph, &plan);
        assert_eq!(PlanId::parse(&graph, id.as_str()).expect("as written"), plan, "{id}");
    });
}

#[test]
fn names_of_fitted_files() {
    feed(&[b"fits/a.0-b.1.0123456789abcdef.safetensors".to_vec()], |bytes| {
        let name = String::from_utf8_lossy(&bytes);
        if let Some(plain) = name_without_digest(&name) {
            let digits = name.rsplit('.').nth(1).expect("a digest");
            assert_eq!(name_with_digest(&plain, digits), name);
        }
    });
}
