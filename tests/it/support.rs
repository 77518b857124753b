//! What the tests share: the pool, one runtime, reference tensors.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use safetensors::{Dtype, SafeTensors};
use tessera::{
    arch::{Encoding, Family},
    runtime::{Executor, Runtime, RuntimeConfig, find_library},
};

/// Returns the repository's folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the process's runtime.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
            let library = find_library(None, environment.as_deref(), &[root()])
                .expect("`make setup` has fetched ONNX Runtime");
            let config = RuntimeConfig { library, num_threads: 2, spin: false };
            Runtime::start(&config).expect("ONNX Runtime starts")
        })
        .clone()
}

/// Returns the default pool's text family.
pub(crate) fn text_family() -> Arc<Family> {
    static FAMILY: OnceLock<Arc<Family>> = OnceLock::new();
    FAMILY
        .get_or_init(|| {
            let folder = root().join("models/text");
            Arc::new(Family::load(&folder).expect("`make setup` has fetched the pool"))
        })
        .clone()
}

/// Returns an executor of the text family.
pub(crate) fn text_executor() -> Executor {
    Executor::new(runtime(), text_family())
}

/// A reference file's tensors.
pub(crate) struct Reference(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Reference {
    /// Reads `tests/references/{name}.safetensors`.
    pub(crate) fn read(name: &str) -> Self {
        let path = root().join("tests/references").join(format!("{name}.safetensors"));
        let bytes = std::fs::read(Path::new(&path)).expect("the reference is there");
        let tensors = SafeTensors::deserialize(&bytes).expect("the reference is valid");
        let read = |view: safetensors::tensor::TensorView<'_>| match view.dtype() {
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))))
                .collect(),
            Dtype::I64 => view
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64)
                .collect(),
            other => panic!("references hold no {other:?}"),
        };
        let tensors = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), read(view))))
            .collect();
        Self(tensors)
    }

    /// Returns a tensor's shape and values.
    pub(crate) fn tensor(&self, name: &str) -> (&[usize], &[f64]) {
        let (shape, values) =
            self.0.get(name).unwrap_or_else(|| panic!("the reference has no `{name}`"));
        (shape, values)
    }

    /// Returns the reference's token ids and mask.
    pub(crate) fn encoding(&self) -> Encoding {
        let (shape, ids) = self.tensor("input_ids");
        let (_, mask) = self.tensor("attention_mask");
        let integers = |values: &[f64]| values.iter().map(|v| *v as i64).collect();
        Encoding {
            batch: shape[0],
            tokens: shape[1],
            input_ids: integers(ids),
            attention_mask: integers(mask),
        }
    }
}

/// Asserts that `found` is within `tolerance` of `expected`, and says how far it is.
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let largest = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (f64::from(*found) - expected).abs())
        .fold(0.0, f64::max);
    println!("{what}: largest difference {largest:.2e}");
    assert!(largest <= tolerance, "{what}: {largest:.2e} is over {tolerance:.0e}");
}
