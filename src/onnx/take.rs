//! Taking rows and columns of weights by a constant list; the rest of a weight stays in its file.

use std::{collections::HashMap, path::Path};

use bytes::Bytes;

use super::{
    OnnxError,
    external::map_bytes,
    proto::{ModelProto, NodeProto, TensorProto, data_type},
    quantize::remove_unused,
};

/// Selected rows or columns of a weight.
struct Part<'a> {
    weight: &'a TensorProto,
    /// Number of rows of the weight; a vector has one column.
    rows: usize,
    columns: usize,
    is_column: bool,
    indices: Vec<usize>,
}

/// Replaces every `Gather` of constant rows or columns of a float weight by the taken values.
///
/// ONNX Runtime would read the whole weight, copy it, and take the part from the copy, for every
/// expert again.
///
/// # Errors
///
/// Fails when a weight cannot be read from `folder`.
pub fn take_rows(model: &ModelProto, folder: &Path) -> Result<ModelProto, OnnxError> {
    let mut model = model.clone();
    let Some(graph) = model.graph.as_mut() else {
        return Ok(model);
    };
    let weights = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let (mut kept, mut taken) = (Vec::with_capacity(graph.node.len()), Vec::new());
    for node in &graph.node {
        match Part::of(node, &weights) {
            Some(part) => taken.push(part.read(folder, &node.output[0])?),
            None => kept.push(node.clone()),
        }
    }
    if !taken.is_empty() {
        graph.node = kept;
        graph.initializer.extend(taken);
        remove_unused(graph);
    }
    Ok(model)
}

impl<'a> Part<'a> {
    /// Returns the part that `node` takes, or `None` if it does not take a part of a known weight.
    fn of(node: &NodeProto, weights: &HashMap<&str, &'a TensorProto>) -> Option<Self> {
        let [weight, indices] = &node.input[..] else { return None };
        if node.op_type != "Gather" || node.output.len() != 1 {
            return None;
        }
        let (weight, indices) = (*weights.get(weight.as_str())?, *weights.get(indices.as_str())?);
        let is_list = indices.data_type == data_type::INT64 && indices.dims.len() == 1;
        let indices = indices.raw_data.as_ref().filter(|_| is_list)?;
        let axis = node.attribute.iter().find(|attribute| attribute.name == "axis");
        let is_column = match (axis.map_or(0, |axis| axis.i.unwrap_or(0)), weight.dims.len()) {
            (0, 1 | 2) => false,
            (1, 2) => true,
            _ => return None,
        };
        let extent = |axis: usize| weight.dims.get(axis).map_or(Some(1), |n| (*n).try_into().ok());
        let (rows, columns) = (extent(0)?, extent(1)?);
        let known = 0..if is_column { columns } else { rows };
        let indices = indices.as_chunks::<8>().0.iter().map(|bytes| {
            let index = usize::try_from(i64::from_le_bytes(*bytes)).ok();
            index.filter(|index| known.contains(index))
        });
        let indices = indices.collect::<Option<_>>()?;
        element_bytes(weight)?;
        Some(Self { weight, rows, columns, is_column, indices })
    }

    /// Reads the part as a tensor named `name`.
    fn read(&self, folder: &Path, name: &str) -> Result<TensorProto, OnnxError> {
        let bytes = map_bytes(folder, self.weight)?;
        let size = element_bytes(self.weight).unwrap_or(1);
        let expected = self.rows.checked_mul(self.columns).and_then(|n| n.checked_mul(size));
        if expected != Some(bytes.len()) {
            return Err(OnnxError::Initializer {
                name: self.weight.name.clone(),
                reason: format!("{} bytes are not its {:?}", bytes.len(), self.weight.dims),
            });
        }
        let raw = match (self.is_column, size) {
            (false, _) => self.take_rows(&bytes, size),
            (true, 2) => self.take_columns::<2>(&bytes),
            (true, _) => self.take_columns::<4>(&bytes),
        };
        let mut dims = self.weight.dims.clone();
        dims[usize::from(self.is_column)] = self.indices.len() as i64;
        Ok(TensorProto {
            name: name.into(),
            data_type: self.weight.data_type,
            dims,
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        })
    }

    fn take_rows(&self, bytes: &[u8], size: usize) -> Vec<u8> {
        let length = self.columns * size;
        let mut taken = Vec::with_capacity(self.indices.len() * length);
        for row in &self.indices {
            taken.extend_from_slice(&bytes[row * length..][..length]);
        }
        taken
    }

    fn take_columns<const SIZE: usize>(&self, bytes: &[u8]) -> Vec<u8> {
        let elements = bytes.as_chunks::<SIZE>().0;
        let mut taken = Vec::with_capacity(self.indices.len() * self.rows * SIZE);
        for row in elements.chunks_exact(self.columns.max(1)) {
            self.indices.iter().for_each(|column| taken.extend_from_slice(&row[*column]));
        }
        taken
    }
}

/// Returns the size of one element of a float weight in bytes, or `None` for another type.
fn element_bytes(weight: &TensorProto) -> Option<usize> {
    match weight.data_type {
        data_type::FLOAT => Some(4),
        data_type::FLOAT16 | data_type::BFLOAT16 => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{
        Attribute, GraphBuilder,
        external::{Place, initializer},
    };

    const VALUES: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    /// Takes `indices` from a `[2, 3]` weight in a file; returns the taken tensor, if there is one.
    fn taken(axis: i64, indices: &[i64]) -> Result<Option<TensorProto>, OnnxError> {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes: Vec<u8> = VALUES.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.path().join("weights"), [&[0; 8], &bytes[..]].concat())
            .expect("the folder can be written");
        let place = Place { file: "weights".into(), offset: 8, length: 24 };
        let mut graph = GraphBuilder::default();
        let weight = graph.weight(initializer("weight", data_type::FLOAT, vec![2, 3], &place));
        let indices = graph.ints(indices);
        let part = graph.node("Gather", &[&weight, &indices], &[("axis", Attribute::Int(axis))]);
        let model = take_rows(&graph.finish(&part, "output", &[None, None]), folder.path())?;
        let graph = model.graph.expect("a graph");
        let found = graph.initializer.iter().find(|tensor| tensor.name == part).cloned();
        assert_eq!(found.is_some(), graph.node.iter().all(|node| node.op_type != "Gather"));
        assert_eq!(found.is_some(), graph.initializer.len() == 1, "nothing is left unread");
        Ok(found)
    }

    fn floats(tensor: &TensorProto) -> Vec<f32> {
        let raw = tensor.raw_data.as_ref().expect("raw data");
        raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn rows_and_columns_are_taken_in_the_order_asked() {
        let rows = taken(0, &[1, 0, 1]).expect("readable").expect("taken");
        assert_eq!(
            (&rows.dims[..], floats(&rows)),
            (&[3, 3][..], vec![4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        );
        let columns = taken(1, &[2, 0]).expect("readable").expect("taken");
        assert_eq!((&columns.dims[..], floats(&columns)), (&[2, 2][..], vec![3.0, 1.0, 6.0, 4.0]));
    }

    #[test]
    fn what_is_not_there_is_left_to_the_runtime_to_refuse() {
        assert!(taken(0, &[2]).expect("readable").is_none());
        assert!(taken(0, &[-1]).expect("readable").is_none());
        assert!(taken(2, &[0]).expect("readable").is_none());
    }
}
