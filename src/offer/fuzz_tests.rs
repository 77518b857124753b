//! Fuzz tests of the files about costs and qualities, each of which must be read or refused, and
//! must be what was read once it is written again (`make fuzz`).

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{MachineKey, ProfileCache, QualityRecords, ShippedProfiles};
use crate::tensor::{
    hex,
    mutate::{are_same, feed, feed_file},
};

fn machine() -> MachineKey {
    MachineKey { processor: "a".to_owned(), num_threads: 2, spin: true, runtime: "0a".repeat(32) }
}

fn module() -> Value {
    let grid = json!({"batches": [1, 8], "tokens": [16, 256], "values": [0.1, 0.2, 0.3, 0.75]});
    json!({"latency_seconds": grid, "activation_bytes": grid})
}

#[test]
fn profile_caches() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = machine().file(folder.path());
    let modules = json!({"0a": module(), "0b": module()});
    let seed = json!({"machine": machine(), "modules": modules, "proven": ["0c"]});
    feed(&[seed.to_string().into_bytes()], |bytes| {
        // The digest is that of the changed text, or else nothing would pass it.
        let text = String::from_utf8_lossy(&bytes);
        let sha256 = hex(&Sha256::digest(text.as_bytes()));
        let sealed = format!("{{\"sha256\":\"{sha256}\",\"cache\":{text}}}");
        // A file that is written over takes milliseconds.
        drop(std::fs::remove_file(&path));
        std::fs::write(&path, sealed).expect("written");
        let Ok(cache) = ProfileCache::read(folder.path(), machine()) else { return };
        std::fs::remove_file(&path).expect("removed");
        cache.write(folder.path()).expect("written");
        let again = ProfileCache::read(folder.path(), machine()).expect("as written");
        assert!(are_same(&again, &cache), "{again:?} {cache:?}");
    });
    let sealed = std::fs::read(&path).expect("the last one");
    feed_file(&[sealed], &path, || drop(ProfileCache::read(folder.path(), machine())));
}

#[test]
fn profiles_of_other_machines() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("profile.json");
    let seed = json!({"machines": [{
        "machine": machine(), "calibration_seconds": 0.5, "modules": {"0a": module()},
        "proven": [],
    }]});
    feed_file(&[seed.to_string().into_bytes()], &path, || {
        let Ok(profiles) = ShippedProfiles::read(&path) else { return };
        profiles.write(&path).expect("written");
        let again = ShippedProfiles::read(&path).expect("as written");
        assert!(are_same(&again, &profiles), "{again:?} {profiles:?}");
        let mut cache = ProfileCache::empty(machine());
        if let Some(nearest) = profiles.nearest(&machine()) {
            drop(nearest.complete(&mut cache, nearest.calibration_seconds));
        }
    });
}

#[test]
fn qualities() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("quality.json");
    let seed = include_bytes!("../../models/fashion/quality.json");
    let short = json!({"metric": "accuracy", "data": "a", "num_texts": 1, "max_tokens": 8,
                       "date": "", "command": "", "plans": {"a[0..1]": 0.5},
                       "losses": {"a.stem": 0.25}, "prediction_error": 0.125});
    feed_file(&[short.to_string().into_bytes(), first_plans(seed)], &path, || {
        let Ok(records) = QualityRecords::read(&path) else { return };
        write(&path, &records);
        let again = QualityRecords::read(&path).expect("as written");
        assert!(are_same(&again, &records), "{again:?} {records:?}");
    });
}

fn write(path: &Path, records: &QualityRecords) {
    std::fs::write(path, serde_json::to_vec(records).expect("written")).expect("written");
}

/// Returns the records of a pool with few of their plans, so that they are read fast.
fn first_plans(file: &[u8]) -> Vec<u8> {
    let mut records: QualityRecords = serde_json::from_slice(file).expect("valid");
    records.plans = records.plans.into_iter().take(8).collect();
    records.losses = records.losses.into_iter().take(8).collect();
    serde_json::to_vec(&records).expect("written")
}
