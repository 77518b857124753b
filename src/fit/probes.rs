//! Probe rows on which networks are tried, and batches of them.

use super::wave::wave;
use crate::{
    onnx::proto::{ValueInfoProto, data_type},
    runtime::Elements,
    tensor::{Tensor, TensorData},
};

/// Number of probe rows.
pub(super) const NUM_ROWS: usize = 8;

/// Batches of one size in which one place always holds the same row.
#[derive(Debug)]
pub(super) struct SamePlace {
    /// Place of the row that stays.
    pub(super) place: usize,
    /// Rows of each batch.
    pub(super) batches: &'static [&'static [usize]],
}

/// Batches that change the other rows: other values, the row itself, large, equal and tiny values.
pub(super) const COMPANIES: &[SamePlace] = &[
    SamePlace { place: 0, batches: &[&[0, 1, 2], &[0, 5, 6], &[0, 0, 0], &[0, 3, 4], &[0, 7, 1]] },
    SamePlace { place: 1, batches: &[&[1, 0, 2], &[3, 0, 5], &[6, 0, 4]] },
    SamePlace { place: 2, batches: &[&[1, 2, 0], &[5, 3, 0], &[4, 7, 0]] },
    SamePlace { place: 0, batches: &[&[2, 1], &[2, 3], &[2, 4]] },
    SamePlace { place: 1, batches: &[&[1, 2], &[3, 2], &[4, 2]] },
];

/// Orders of several rows, to be compared with each row alone.
pub(super) const ORDERS: &[&[usize]] = &[
    &[0, 1],
    &[2, 1, 0],
    &[0, 1, 2, 3, 4, 5, 6, 7],
    &[7, 6, 5, 4, 3, 2, 1, 0],
    &[3, 0, 6, 1, 7, 4, 2, 5],
];

/// Creates probe rows for `input`, or returns `None` if it declares no shape. Axes of unknown
/// extent get `tokens`, and token ids stay below `words`.
pub(super) fn rows(input: &ValueInfoProto, tokens: usize, words: usize) -> Option<Tensor> {
    let extents = input.extents()?;
    let rest: Vec<usize> = extents.iter().skip(1).map(|extent| extent.unwrap_or(tokens)).collect();
    let length: usize = rest.iter().product();
    let shape = [NUM_ROWS].into_iter().chain(rest).collect();
    let elem_type = input.r#type.as_ref()?.tensor_type.as_ref()?.elem_type;
    let is_mask = input.name == crate::module::ATTENTION_MASK;
    let each = (0..NUM_ROWS).flat_map(|row| (0..length).map(move |index| (row, index)));
    let data = match elem_type {
        data_type::INT64 if is_mask => {
            let kept = |row: usize| length - (row % 4).min(length.saturating_sub(1));
            TensorData::I64(each.map(|(row, index)| i64::from(index < kept(row))).collect())
        }
        data_type::INT64 => {
            let id = |(row, index)| (1_000 + index * (37 + row) + 101 * row) % words.max(1);
            TensorData::I64(each.map(|place| i64::try_from(id(place)).unwrap_or(0)).collect())
        }
        _ => TensorData::F32(each.map(|(row, index)| value(row, index)).collect()),
    };
    Tensor::new(shape, data).ok()
}

/// Returns the value at `index` of `row`. Rows differ in values, some in magnitude, and two rows
/// have one value only.
fn value(row: usize, index: usize) -> f32 {
    match row {
        3 => 100.0 * wave(7 * index + 3),
        4 => 0.0,
        5 => 2.0,
        6 => -30.0 * wave(index + 11).abs(),
        7 => 0.01 * wave(5 * index + 1),
        _ => wave(index * (1 + row) + 7_919 * row),
    }
}

/// Creates a batch of the rows `batch` of each input.
pub(super) fn take(rows: &[(String, Tensor)], batch: &[usize]) -> Vec<(String, Tensor)> {
    let taken = |tensor: &Tensor| {
        let rest: Vec<usize> = tensor.shape().iter().skip(1).copied().collect();
        let length: usize = rest.iter().product();
        let shape = [batch.len()].into_iter().chain(rest).collect();
        let data = match tensor.data() {
            TensorData::I64(values) => TensorData::I64(pick(values, length, batch)),
            TensorData::F32(values) => TensorData::F32(pick(values, length, batch)),
            TensorData::Bytes(values) => TensorData::Bytes(pick(values, length, batch)),
        };
        Tensor::new(shape, data).expect("as many values as the shape holds")
    };
    rows.iter().map(|(name, tensor)| (name.clone(), taken(tensor))).collect()
}

fn pick<T: Clone>(values: &[T], length: usize, batch: &[usize]) -> Vec<T> {
    batch.iter().flat_map(|row| values[row * length..(row + 1) * length].iter().cloned()).collect()
}

/// Borrows inputs in the form that models take.
pub(super) fn named(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
}

/// Returns whether `whole` consists of the tensors in `alone`, one per row, joined along one axis.
/// The rows may follow one another or alternate. Tensors whose shapes do not fit pass.
pub(super) fn consists_of(
    whole: &Elements,
    alone: &[&Elements],
    agree: impl Fn(&[f64], &[f64]) -> bool,
) -> bool {
    let Some(first) = alone.first() else { return true };
    let axes: Vec<usize> = (0..whole.shape.len())
        .filter(|axis| first.shape.get(*axis).is_some_and(|one| *one != whole.shape[*axis]))
        .collect();
    let ([axis], num_rows) = (&axes[..], alone.len()) else { return true };
    let is_whole = first.shape.len() == whole.shape.len()
        && alone.iter().all(|one| one.shape == first.shape)
        && whole.shape[*axis] == num_rows * first.shape[*axis];
    if !is_whole {
        return true;
    }
    let inner: usize = first.shape[axis + 1..].iter().product();
    let per_row = first.shape[*axis];
    let outer: usize = first.shape[..*axis].iter().product();
    let part = |row: usize, follow: bool| -> Vec<f64> {
        let place = |step: usize| if follow { row * per_row + step } else { step * num_rows + row };
        let steps = (0..outer).flat_map(|o| (0..per_row).map(move |step| (o, step)));
        steps
            .flat_map(|(o, step)| {
                let start = (o * per_row * num_rows + place(step)) * inner;
                whole.values[start..start + inner].iter().copied()
            })
            .collect()
    };
    [true, false].into_iter().any(|follow| {
        alone.iter().enumerate().all(|(row, one)| agree(&one.values, &part(row, follow)))
    })
}
