//! Single rows of a batch, for networks that mix rows and so run one row at a time.

use std::sync::Arc;

use ort::value::{DynValue, Tensor as OrtTensor};

use super::{
    Activation, RuntimeError, SideInputs,
    activation::{handed_over, view},
};

impl SideInputs {
    /// Returns the number of rows.
    pub(super) fn num_rows(&self) -> usize {
        let shape = self.values.first().and_then(|(_, value)| value.dtype().tensor_shape());
        let rows = shape.and_then(|shape| shape.first().copied());
        rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0)
    }

    /// Returns a copy of row `index`, including its padding.
    pub(super) fn row(&self, index: usize) -> Result<Self, RuntimeError> {
        let values = self.values.iter().map(|(name, value)| Ok((*name, row_of(value, index)?)));
        Ok(Self { values: values.collect::<Result<_, RuntimeError>>()? })
    }
}

impl Activation {
    /// Returns a copy of row `index` of every output.
    pub(super) fn row(&self, index: usize) -> Result<Self, RuntimeError> {
        let others = self.others.iter().map(|value| row_of(value, index));
        let others = others.collect::<Result<_, _>>()?;
        let sizes = self.sizes.iter().map(|sizes| row_of(sizes, index).map(Arc::new)).next();
        let sizes = sizes.transpose()?;
        Ok(Self { others, sizes, ..Self::new(row_of(&self.value, index)?) })
    }

    /// Joins `rows` into one batch.
    pub(super) fn join(rows: &[Self]) -> Result<Self, RuntimeError> {
        let others = rows.first().map_or(0, |row| row.others.len());
        let others =
            (0..others).map(|index| join_values(rows.iter().map(|row| &row.others[index])));
        let others = others.collect::<Result<_, _>>()?;
        let sizes: Option<Vec<&DynValue>> = rows.iter().map(|row| row.sizes.as_deref()).collect();
        let sizes = sizes.filter(|sizes| !sizes.is_empty());
        let sizes = sizes.map(|sizes| join_values(sizes.into_iter()).map(Arc::new)).transpose()?;
        Ok(Self { others, sizes, ..Self::new(join_values(rows.iter().map(|row| &row.value))?) })
    }
}

fn row_of(value: &DynValue, index: usize) -> Result<DynValue, RuntimeError> {
    let wrap = |source| RuntimeError::Tensor { source };
    if let Ok((shape, values)) = value.try_extract_tensor::<i64>() {
        let shape: Vec<usize> = shape.iter().map(|e| usize::try_from(*e).unwrap_or(0)).collect();
        let (shape, range) = part(&shape, index)?;
        let row = OrtTensor::from_array((shape, values[range].to_vec())).map_err(wrap)?;
        return Ok(row.into_dyn());
    }
    let (shape, values) = view(value)?;
    let (shape, range) = part(&shape, index)?;
    handed_over(shape, values[range].to_vec())
}

/// Returns the shape of row `index` of a batch of `shape`, and the range of its elements.
fn part(
    shape: &[usize],
    index: usize,
) -> Result<(Vec<usize>, std::ops::Range<usize>), RuntimeError> {
    let rest = shape.get(1..).unwrap_or_default();
    if shape.first().is_none_or(|rows| index >= *rows) {
        let source = ort::Error::new(format!("there is no row {index} in the shape {shape:?}"));
        return Err(RuntimeError::Tensor { source });
    }
    let length: usize = rest.iter().product();
    let row = [1].into_iter().chain(rest.iter().copied()).collect();
    Ok((row, index * length..(index + 1) * length))
}

fn join_values<'a>(rows: impl Iterator<Item = &'a DynValue>) -> Result<DynValue, RuntimeError> {
    let (mut shape, mut joined): (Vec<usize>, Vec<f32>) = (Vec::new(), Vec::new());
    let mut num_rows = 0;
    for row in rows {
        let (row_shape, values) = view(row)?;
        num_rows += row_shape.first().copied().unwrap_or(0);
        shape = row_shape;
        joined.extend_from_slice(values);
    }
    if let Some(first) = shape.first_mut() {
        *first = num_rows;
    }
    handed_over(shape, joined)
}
