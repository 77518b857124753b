//! Weights of blocks in a graph.

use std::{collections::HashMap, path::Path};

use crate::onnx::{
    OnnxError,
    blocks::{BlockType, Packed, pack},
    external::{Place, map_bytes, place_of},
    proto::TensorProto,
};

/// Weight of blocks, `[rows, columns]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight<'g> {
    tensor: &'g TensorProto,
    /// Type of the blocks.
    pub(super) block_type: BlockType,
    /// Number of rows.
    pub(super) rows: usize,
    /// Number of columns.
    pub(super) columns: usize,
}

/// Weights of blocks of a graph, by name.
pub(super) type Weights<'g> = HashMap<&'g str, Weight<'g>>;

impl<'g> Weight<'g> {
    /// Returns `tensor` as a weight of blocks, with its name, or `None` if it is none.
    pub(super) fn of(tensor: &'g TensorProto) -> Option<(&'g str, Self)> {
        let block_type = BlockType::of_data_type(tensor.data_type)?;
        let [rows, columns] = tensor.dims[..] else { return None };
        let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
        let weight = Self { tensor, block_type, rows, columns };
        (rows > 0 && columns > 0).then_some((&tensor.name, weight))
    }

    /// Returns the weight's place in its file if it is as long as the weight.
    pub(super) fn place(&self) -> Option<Place> {
        let (elements, bytes) = (self.block_type.elements(), self.block_type.bytes());
        let length = (self.rows * self.columns / elements * bytes) as u64;
        let has_whole_rows = self.columns.is_multiple_of(elements);
        place_of(self.tensor).filter(|place| has_whole_rows && place.length == length)
    }

    /// Reads the weight in the form of products.
    pub(super) fn packed(&self, folder: &Path) -> Result<Packed, OnnxError> {
        let bytes = map_bytes(folder, self.tensor)?;
        let blocks = bytes.len() / self.block_type.bytes();
        let has_whole_rows = self.columns.is_multiple_of(self.block_type.elements());
        let expected = (self.rows * self.columns) / self.block_type.elements();
        if !has_whole_rows || blocks != expected {
            return Err(OnnxError::Initializer {
                name: self.tensor.name.clone(),
                reason: format!("{} bytes are not its {:?}", bytes.len(), self.tensor.dims),
            });
        }
        Ok(pack(self.block_type, &bytes))
    }
}
