//! Fuzz tests: many wrong checkpoints, each of which must be read or refused (`make fuzz`).

use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};

use super::checkpoint::Checkpoint;
use crate::tensor::{MappedFile, mutate::feed_file};

#[test]
#[ignore = "takes minutes: make fuzz"]
fn checkpoints() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    let view = |dtype, data| TensorView::new(dtype, vec![2, 2], data).expect("valid");
    let tensors =
        [("a.weight", view(Dtype::F32, &[0; 16])), ("b.weight", view(Dtype::F16, &[1; 8]))];
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let seed = safetensors::serialize(tensors, Some(metadata)).expect("written");
    feed_file(&[seed], &path, || {
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
            drop(checkpoint.rows(name, &place.shape, 0..1));
        }
    });
}
