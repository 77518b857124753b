//! Reference files: tensors that other implementations computed.

use std::{collections::HashMap, path::Path};

use safetensors::{Dtype, SafeTensors};
use tessera::input::Encoding;

use super::root;

/// A reference file's tensors.
pub(crate) struct Reference(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Reference {
    /// Reads `tests/references/{name}.safetensors`.
    pub(crate) fn read(name: &str) -> Self {
        Self::open(&root().join("tests/references").join(format!("{name}.safetensors")))
    }

    /// Reads a reference file.
    pub(crate) fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("the reference is there");
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

    /// Returns the names of its tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
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
