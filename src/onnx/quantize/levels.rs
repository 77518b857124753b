//! Levels and scales of a quantized matrix.

use bytes::Bytes;

use crate::onnx::proto::{TensorProto, data_type};

/// Number of columns of a transposed matrix whose levels are put in place together. Bytes are then
/// written side by side, and the columns stay in the processor's first cache.
const BLOCK: usize = 16;

/// Largest f32 below one half. Its sum with a number has the number's rounded value as its whole
/// part, where halves are rounded away from zero.
const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;

/// Constant `[rows, columns]` matrix that a product reads.
pub(super) struct Matrix {
    pub(super) initializer: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Number of elements between two rows in the file.
    pub(super) stride: usize,
    /// Whether the file holds the matrix as `[columns, rows]`.
    pub(super) is_transposed: bool,
}

/// Matrix of int8, with a scale for each column.
#[derive(Debug, PartialEq)]
pub(super) struct Quantized {
    /// Levels in row-major order, in two's complement.
    levels: Vec<u8>,
    scales: Vec<f32>,
    rows: usize,
}

impl Quantized {
    /// Quantizes the matrix that `values` hold as `matrix` describes. Levels are at most
    /// `max_level`.
    pub(super) fn new(values: &[f32], matrix: &Matrix, max_level: i8) -> Self {
        let max_level = f32::from(max_level);
        let (levels, scales) = match matrix.is_transposed {
            true => by_column(values, matrix, max_level),
            false => by_row(values, matrix, max_level),
        };
        Self { levels, scales, rows: matrix.rows }
    }

    /// Returns the levels and the scales as initializers, whose names begin with `name`.
    pub(super) fn into_initializers(self, name: &str) -> [TensorProto; 2] {
        let (rows, columns) = (self.rows as i64, self.scales.len() as i64);
        let scales: Vec<u8> = self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let tensor = |suffix: &str, data_type, dims, raw: Vec<u8>| TensorProto {
            name: format!("{name}.{suffix}"),
            data_type,
            dims,
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        };
        [
            tensor("int8", data_type::INT8, vec![rows, columns], self.levels),
            tensor("scale", data_type::FLOAT, vec![columns], scales),
        ]
    }
}

/// Quantizes a matrix whose rows lie one after another.
fn by_row(values: &[f32], matrix: &Matrix, max_level: f32) -> (Vec<u8>, Vec<f32>) {
    let Matrix { rows, columns, stride, .. } = *matrix;
    let row = |index: usize| &values[index * stride..][..columns];
    let mut largest = vec![0; columns];
    for index in 0..rows {
        for (largest, value) in largest.iter_mut().zip(row(index)) {
            *largest = magnitude(*value).max(*largest);
        }
    }
    let scales: Vec<f32> = largest.into_iter().map(|bits| scale(bits, max_level)).collect();
    let mut levels = Vec::with_capacity(rows * columns);
    for index in 0..rows {
        let pairs = row(index).iter().zip(&scales);
        levels.extend(pairs.map(|(value, scale)| level(*value, *scale, max_level)));
    }
    (levels, scales)
}

/// Quantizes a matrix whose columns lie one after another.
fn by_column(values: &[f32], matrix: &Matrix, max_level: f32) -> (Vec<u8>, Vec<f32>) {
    let Matrix { rows, columns, stride, .. } = *matrix;
    let (mut levels, mut scales) = (vec![0; rows * columns], Vec::with_capacity(columns));
    let mut block = Vec::with_capacity(BLOCK * rows);
    for first in (0..columns).step_by(BLOCK) {
        let width = BLOCK.min(columns - first);
        block.clear();
        for index in first..first + width {
            let column = &values[index * stride..][..rows];
            let largest = column.iter().map(|value| magnitude(*value)).max();
            let scale = scale(largest.unwrap_or(0), max_level);
            block.extend(column.iter().map(|value| level(*value, scale, max_level)));
            scales.push(scale);
        }
        for row in 0..rows {
            let place = &mut levels[row * columns + first..][..width];
            for (index, level) in place.iter_mut().enumerate() {
                *level = block[index * rows + row];
            }
        }
    }
    (levels, scales)
}

/// Returns the bits of the absolute value, which are in the order of the values; those of a NaN are
/// the largest. Integers are compared several at a time, floats one by one.
fn magnitude(value: f32) -> u32 {
    value.abs().to_bits()
}

/// Returns the scale of a column with the largest magnitude `bits`.
fn scale(bits: u32, max_level: f32) -> f32 {
    match f32::from_bits(bits) {
        0.0 => 1.0,
        largest => largest / max_level,
    }
}

/// Returns the level of `value`. `f32::round` would be a call for each value on processors of the
/// least kind.
#[expect(clippy::cast_possible_truncation, reason = "levels are clamped to an i8")]
fn level(value: f32, scale: f32, max_level: f32) -> u8 {
    let quotient = value / scale;
    let level = (quotient + BELOW_HALF.copysign(quotient)).clamp(-max_level, max_level);
    (level as i32 as i8).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Quantizes element by element as the definition says.
    fn plainly(values: &[f32], matrix: &Matrix, max_level: i8) -> Quantized {
        let Matrix { rows, columns, stride, is_transposed, .. } = *matrix;
        let at = |row: usize, column: usize| match is_transposed {
            true => values[column * stride + row],
            false => values[row * stride + column],
        };
        let max_level = f32::from(max_level);
        let scales = (0..columns).map(|column| {
            let magnitudes = (0..rows).map(|row| at(row, column).abs());
            let largest = magnitudes.fold(0.0, |a: f32, b| if a > b || a.is_nan() { a } else { b });
            if largest == 0.0 { 1.0 } else { largest / max_level }
        });
        let scales: Vec<f32> = scales.collect();
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let levels = places.map(|(row, column)| {
            let level = (at(row, column) / scales[column]).round().clamp(-max_level, max_level);
            #[expect(clippy::cast_possible_truncation, reason = "levels are clamped to an i8")]
            (level as i8).cast_unsigned()
        });
        Quantized { levels: levels.collect(), scales, rows }
    }

    fn matrix(extents: [usize; 3], is_transposed: bool) -> Matrix {
        let [rows, columns, more] = extents;
        let stride = more + if is_transposed { rows } else { columns };
        Matrix { initializer: 0, rows, columns, stride, is_transposed }
    }

    /// Checks that `values`, repeated, are quantized as the definition says.
    fn check(values: &[f32], matrix: &Matrix) {
        let values = || values.iter().copied().cycle();
        let lines = if matrix.is_transposed { matrix.columns } else { matrix.rows };
        let values: Vec<f32> = values().take(matrix.stride * lines).collect();
        for max_level in [63, 127] {
            let found = Quantized::new(&values, matrix, max_level);
            let expected = plainly(&values, matrix, max_level);
            assert_eq!(found.levels, expected.levels);
            let bits = |scales: &[f32]| scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
            let is_equal =
                |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            let (a, b) = (&found.scales, &expected.scales);
            assert!(a.iter().zip(b).all(is_equal), "{:?} {:?}", bits(a), bits(b));
        }
    }

    proptest! {
        #[test]
        fn levels_and_scales_are_those_of_the_definition(
            values in proptest::collection::vec(prop_oneof![any::<f32>(), -9.0_f32..9.0], 1..200),
            (rows, columns, more) in (1_usize..40, 1_usize..40, 0_usize..3),
            is_transposed: bool,
        ) {
            check(&values, &matrix([rows, columns, more], is_transposed));
        }
    }

    #[test]
    fn halves_and_their_neighbours_are_rounded_like_any_number() {
        let halves = (0..127).map(|whole: u8| f32::from(whole) + 0.5);
        let beside = halves.flat_map(|half| [half.next_down(), half, half.next_up()]);
        let both = beside.flat_map(|value| [value, -value]);
        let values: Vec<f32> = [127.0, 0.0, -0.0].into_iter().chain(both).collect();
        check(&values, &matrix([values.len(), 1, 0], false));
        check(&values, &matrix([values.len(), 1, 0], true));
    }

    #[test]
    fn rows_and_columns_without_a_number_are_those_of_the_definition() {
        for values in [&[0.0][..], &[f32::NAN], &[1.0, f32::INFINITY, -2.0], &[f32::NAN, 1.0, 0.0]]
        {
            check(values, &matrix([7, 20, 1], false));
            check(values, &matrix([7, 20, 1], true));
        }
    }
}
