//! Fuzz tests: many wrong files of a pool, each of which must be read or refused (`make fuzz`).

use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use super::{FitRecords, GgufFile, checkpoint::Checkpoint, gguf::tests::example};
use crate::tensor::{
    MappedFile,
    mutate::{are_same, feed_file},
};

fn checkpoint() -> Vec<u8> {
    let view = |dtype, data| TensorView::new(dtype, vec![2, 2], data).expect("valid");
    let tensors =
        [("a.weight", view(Dtype::F32, &[0; 16])), ("b.weight", view(Dtype::F16, &[1; 8]))];
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(tensors, Some(metadata)).expect("written")
}

#[test]
fn checkpoints() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    feed_file(&[checkpoint()], &path, || {
        let file = MappedFile::open(&path).expect("mapped");
        let length = file.bytes().len() as u64;
        let location = Path::new("model.safetensors");
        let Ok(checkpoint) = Checkpoint::parse(folder.path(), &file, location) else {
            return;
        };
        for name in checkpoint.names() {
            let place = checkpoint.tensor(name).expect("named");
            assert!(place.offset + place.length <= length, "{name} lies outside the file");
            drop(checkpoint.weight(name, &place.shape));
            drop(checkpoint.finite_weight(name, &place.shape));
            drop(checkpoint.rows(name, &place.shape, 0..1));
            if let [matrices, rows, columns] = place.shape[..] {
                drop(checkpoint.matrix(name, [matrices, rows, columns], 1, 0..1));
            }
        }
    });
}

#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    feed_file(&[example().bytes()], &path, || {
        let file = MappedFile::open(&path).expect("mapped");
        let length = file.bytes().len() as u64;
        let Ok(gguf) = GgufFile::parse(folder.path(), &file, Path::new("model.gguf")) else {
            return;
        };
        for (key, value) in gguf.values() {
            assert!(value.to_string().len() < 1_000, "{key}");
            if let Some(list) = value.as_list() {
                assert!(list.texts().is_none_or(|texts| texts.len() == list.len()));
                assert!(list.values().is_none_or(|values| values.len() == list.len()));
            }
        }
        let checkpoint = gguf.checkpoint(|name| Some(name.to_owned()));
        for (name, place) in gguf.tensors() {
            assert!(place.offset + place.length <= length, "{name} lies outside the file");
            drop(checkpoint.finite_weight(name, &place.shape));
            drop(checkpoint.rows(name, &place.shape, 0..1));
        }
    });
}

#[test]
fn indexes_of_checkpoints() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = ["model-1.safetensors", "model-2.safetensors"];
    for shard in shards {
        std::fs::write(folder.path().join(shard), checkpoint()).expect("written");
    }
    let digest = |file: &Path| {
        let found = MappedFile::open(&folder.path().join(file));
        found.map_or_else(|_| String::new(), |file| file.sha256())
    };
    let known = digest(Path::new(shards[0]));
    let index = Path::new("model.safetensors.index.json");
    let seed = json!({"metadata": {"total_size": 48},
                      "weight_map": {"a.weight": shards[0], "b.weight": shards[1]}});
    feed_file(&[seed.to_string().into_bytes()], &folder.path().join(index), || {
        let own = digest(index);
        let sha256 = |file: &Path| Ok(if file == index { own.as_str() } else { known.as_str() });
        if let Ok(checkpoint) = Checkpoint::open_sharded(folder.path(), index, sha256) {
            for name in checkpoint.names() {
                assert!(["a.weight", "b.weight"].contains(&name), "{name}");
            }
        }
    });
}

#[test]
fn an_index_with_two_files_for_a_tensor_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let index = Path::new("model.safetensors.index.json");
    let path = folder.path().join(index);
    std::fs::write(&path, r#"{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}"#)
        .expect("written");
    let own = MappedFile::open(&path).expect("mapped").sha256();
    let error = Checkpoint::open_sharded(folder.path(), index, |_| Ok(own.as_str()));
    let error = error.expect_err("two places").to_string();
    assert!(error.contains("`a`"), "{error}");
}

#[test]
fn records_of_fits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let map = json!({"sha256": "0a", "samples": 8, "regularization": 0.5, "held_out_r2": 0.25,
                     "data": "a", "date": "2026-01-01"});
    let mut named = map.clone();
    named["file"] = json!("fits/a.0-b.0.0123456789abcdef.safetensors");
    let split = json!({"sha256": "0b", "samples": 8, "held_out_r2": 0, "data": "", "date": ""});
    let seed = json!({"maps": {"fits/a.0-b.0.safetensors": named, "fits/a.1-b.1.safetensors": map},
                      "experts": {"fits/a.experts4.safetensors": split},
                      "superseded": ["fits/old.safetensors"]});
    let path = folder.path().join("fits.json");
    feed_file(&[seed.to_string().into_bytes()], &path, || {
        let Ok(records) = FitRecords::read(folder.path()) else { return };
        let (_, text) = records.to_file();
        std::fs::write(&path, &text).expect("written");
        let again = FitRecords::read(folder.path()).expect("as written");
        assert!(are_same(&again, &records), "{again:?} {records:?}");
        assert!(records.files().all(|file| file.location.starts_with("fits/")));
    });
}
