//! Fuzz test of recorded arrivals, which must be read or refused: `make fuzz`.

use std::time::Duration;

use crate::{bench::Arrivals, tensor::mutate::feed_file};

#[test]
fn traces() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace");
    feed_file(&[b"# seconds\n0.5\n\n1\n1.25\n900\n".to_vec()], &path, || {
        let Ok(arrivals) = Arrivals::read_trace(&path) else { return };
        let offsets = arrivals.offsets(100.0, Duration::from_secs(1), 1);
        assert!(offsets.is_sorted());
    });
}
