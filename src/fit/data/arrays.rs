//! Arrays of integers in IDX and NPY files, which may be compressed with gzip.

use std::{io::Read, path::Path};

use crate::{
    fit::error::FitError,
    tensor::{FileKind, read_bytes},
};

/// Maximum number of bytes of the values in a file.
const MAX_BYTES: u64 = 1 << 33;

/// Number of bytes in which an NPY file's header lies.
const MAX_NPY_HEADER: usize = 1 << 17;

/// Most brackets in an NPY file's header; those of numbers have two.
const MAX_NPY_BRACKETS: usize = 8;

/// Array of integers with its shape.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Array {
    /// Extents of the axes.
    pub(super) shape: Vec<u64>,
    values: Values,
}

/// Integers, in the form that takes the least memory.
#[derive(Debug, PartialEq, Eq)]
enum Values {
    /// Unsigned bytes.
    Bytes(Vec<u8>),
    /// Integers of any other type.
    Wide(Vec<i64>),
}

impl Array {
    /// Reads an IDX or NPY file.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or holds something other than integers.
    pub(super) fn read(path: &Path) -> Result<Self, FitError> {
        let wrap = |reason| FitError::File { path: path.to_owned(), reason };
        let mut bytes = read_bytes(path, FileKind::Examples).map_err(wrap)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = Vec::new();
            let decoder = flate2::read::MultiGzDecoder::new(&bytes[..]);
            decoder.take(MAX_BYTES).read_to_end(&mut unpacked).map_err(wrap)?;
            bytes = unpacked;
        }
        let parsed = if bytes.starts_with(b"\x93NUMPY") { npy(&bytes) } else { idx(&bytes) };
        parsed.map_err(|message| FitError::Malformed { path: path.to_owned(), message })
    }

    /// Returns the values as bytes.
    ///
    /// # Errors
    ///
    /// Fails with the first value that is not a byte.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>, i64> {
        match self.values {
            Values::Bytes(bytes) => Ok(bytes),
            Values::Wide(values) => {
                values.into_iter().map(|value| u8::try_from(value).map_err(|_| value)).collect()
            }
        }
    }

    /// Returns the values as integers.
    pub(super) fn into_integers(self) -> Vec<i64> {
        match self.values {
            Values::Bytes(bytes) => bytes.into_iter().map(i64::from).collect(),
            Values::Wide(values) => values,
        }
    }
}

/// Parses IDX: two zeros, the type, the number of axes, their extents, the elements, all with the
/// high byte first.
fn idx(bytes: &[u8]) -> Result<Array, String> {
    let [0, 0, code, axes @ 1..=4, rest @ ..] = bytes else {
        return Err("is neither NPY nor IDX of integers".into());
    };
    let axes = usize::from(*axes);
    let Some((extents, rest)) = rest.split_at_checked(4 * axes) else {
        return Err("ends inside its header".into());
    };
    let extents = extents.as_chunks::<4>().0.iter();
    let shape: Vec<u64> = extents.map(|extent| u64::from(u32::from_be_bytes(*extent))).collect();
    let wide = |width: usize, read: fn(&[u8]) -> i64| {
        let whole = rest.len().is_multiple_of(width);
        let values = || Values::Wide(rest.chunks_exact(width).map(read).collect());
        whole.then(values).ok_or_else(|| format!("holds {} bytes, not whole values", rest.len()))
    };
    let values = match code {
        8 => Values::Bytes(rest.to_vec()),
        9 => wide(1, |value| i64::from(value[0].cast_signed()))?,
        11 => wide(2, |value| i64::from(i16::from_be_bytes([value[0], value[1]])))?,
        12 => wide(4, |v| i64::from(i32::from_be_bytes([v[0], v[1], v[2], v[3]])))?,
        _ => return Err(format!("is neither NPY nor IDX of integers: its type is {code}")),
    };
    checked(shape, values)
}

/// Parses NPY of integers of any type.
fn npy(bytes: &[u8]) -> Result<Array, String> {
    // The library allocates the length that a header says, before it reads the header.
    let length = npy_header_length(bytes).filter(|length| *length <= bytes.len());
    if length.is_none_or(|length| length > MAX_NPY_HEADER) {
        let reason = "its header is longer than it, or than 131072 bytes";
        return Err(format!("is not a valid NPY file: {reason}"));
    }
    // The library takes exponentially long for brackets in brackets; headers here have few.
    let header = &bytes[..bytes.len().min(MAX_NPY_HEADER)];
    let header = header.split(|byte| *byte == b'\n').find(|line| line.contains(&b'{'));
    let brackets = header.into_iter().flatten().filter(|byte| b"([{".contains(byte));
    if brackets.count() > MAX_NPY_BRACKETS {
        return Err("is not a valid NPY file: its header is nested".into());
    }
    let file = npyz::NpyFile::new(bytes).map_err(|e| format!("is not a valid NPY file: {e}"))?;
    if file.order() != npyz::Order::C {
        return Err("is in Fortran's order, but rows must come first".into());
    }
    let shape = file.shape().to_vec();
    let count: Option<u64> = shape.iter().try_fold(1_u64, |n, extent| n.checked_mul(*extent));
    if count.is_none_or(|count| count > MAX_BYTES) {
        return Err(format!("holds too many elements: {shape:?}"));
    }
    let type_name = file.dtype().descr();
    let type_name = type_name.trim_matches('\'');
    let values = match type_name.trim_start_matches(['|', '<', '>', '=']) {
        "u1" => Values::Bytes(file.into_vec().map_err(|e| e.to_string())?),
        "i1" => widened::<i8>(file)?,
        "i2" => widened::<i16>(file)?,
        "i4" => widened::<i32>(file)?,
        "i8" => widened::<i64>(file)?,
        "u2" => widened::<u16>(file)?,
        "u4" => widened::<u32>(file)?,
        "u8" => widened::<u64>(file)?,
        _ => return Err(format!("holds {type_name}, but integers are needed, such as |u1 or <i8")),
    };
    checked(shape, values)
}

/// Returns the length that the header of an NPY file says it has; `None` if the file is too short.
fn npy_header_length(bytes: &[u8]) -> Option<usize> {
    let (major, length) = (*bytes.get(6)?, bytes.get(8..)?);
    let length = match major {
        1 => u32::from(u16::from_le_bytes(*length.first_chunk()?)),
        _ => u32::from_le_bytes(*length.first_chunk()?),
    };
    usize::try_from(length).ok()
}

/// Reads the elements of a file, of the type `T`, as integers of 64 bits.
fn widened<T>(file: npyz::NpyFile<&[u8]>) -> Result<Values, String>
where
    T: npyz::Deserialize + TryInto<i64> + Copy + std::fmt::Display,
{
    let values = file.into_vec::<T>().map_err(|e| e.to_string())?;
    let wide = |value: T| value.try_into().map_err(|_| format!("holds {value}, over 2^63"));
    values.into_iter().map(wide).collect::<Result<_, _>>().map(Values::Wide)
}

fn checked(shape: Vec<u64>, values: Values) -> Result<Array, String> {
    let count = shape.iter().try_fold(1_u64, |count, extent| count.checked_mul(*extent));
    let found = match &values {
        Values::Bytes(bytes) => bytes.len(),
        Values::Wide(values) => values.len(),
    };
    if count != Some(found as u64) {
        return Err(format!("holds {found} elements, but its shape is {shape:?}"));
    }
    Ok(Array { shape, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an NPY file of one axis.
    fn npy_of(type_name: &str, count: usize, values: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{type_name}', 'fortran_order': False, 'shape': ({count},)}}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend(u16::try_from(header.len()).expect("short").to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(values);
        file
    }

    #[test]
    fn bytes_are_read_with_their_shape() {
        let array = idx(&[0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]).expect("valid");
        assert_eq!((array.shape.clone(), array.into_bytes()), (vec![1, 2], Ok(vec![7, 9])));
        let array = npy(&npy_of("|u1", 2, &[255, 3])).expect("valid");
        assert_eq!((array.shape.clone(), array.into_integers()), (vec![2], vec![255, 3]));
    }

    #[test]
    fn integers_of_every_type_are_read() {
        for (type_name, bytes, expected) in [
            ("|i1", &[255_u8, 5][..], [-1, 5]),
            ("<i2", &[0xe7, 3, 0xff, 0xff], [999, -1]),
            (">i2", &[3, 0xe7, 0xff, 0xff], [999, -1]),
            ("<u2", &[0xe7, 3, 0xff, 0xff], [999, 65_535]),
            ("<i4", &[0xe7, 3, 0, 0, 0xff, 0xff, 0xff, 0xff], [999, -1]),
            ("<u4", &[0xe7, 3, 0, 0, 0xff, 0xff, 0xff, 0xff], [999, 4_294_967_295]),
            (">u4", &[0, 0, 3, 0xe7, 0, 0, 0, 1], [999, 1]),
            ("<i8", &[0xe7, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [999, 1]),
            ("<u8", &[0xe7, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [999, 1]),
        ] {
            let array = npy(&npy_of(type_name, 2, bytes)).expect(type_name);
            assert_eq!(array.into_integers(), expected, "{type_name}");
        }
        for (code, bytes, expected) in [
            (9, &[255_u8, 5][..], [-1, 5]),
            (11, &[3, 0xe7, 0xff, 0xff], [999, -1]),
            (12, &[0, 0, 3, 0xe7, 0xff, 0xff, 0xff, 0xff], [999, -1]),
        ] {
            let file = [&[0, 0, code, 1, 0, 0, 0, 2], bytes].concat();
            assert_eq!(idx(&file).expect("valid").into_integers(), expected, "{code}");
        }
    }

    #[test]
    fn wide_integers_are_bytes_where_they_fit() {
        let of = |value: u8| npy(&npy_of("<i2", 2, &[200, 0, value, 1])).expect("valid");
        assert_eq!(of(0).into_bytes(), Err(256));
        let small = npy(&npy_of("<i2", 2, &[200, 0, 7, 0])).expect("valid");
        assert_eq!(small.into_bytes(), Ok(vec![200, 7]));
    }

    #[test]
    fn broken_arrays_are_refused_by_reason() {
        for (bytes, reason) in [
            (&[0, 0, 8, 1, 0, 0, 0, 3, 1][..], "holds 1 elements"),
            (&[0, 0, 8, 3, 0, 0], "inside its header"),
            (&[0, 0, 11, 1, 0, 0, 0, 1, 1], "not whole values"),
            (&[0, 0, 13, 1, 0, 0, 0, 0], "its type is 13"),
            (&[], "neither NPY nor IDX"),
            (&[0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255], "holds 0 elements"),
        ] {
            let error = idx(bytes).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
        for (bytes, reason) in [
            (npy_of("<f4", 1, &[0; 4]), "holds <f4, but integers"),
            (npy_of("<u8", 1, &[255; 8]), "holds 18446744073709551615"),
            (npy_of("<u2", 2, &[0; 2]), "fill whole buffer"),
            (b"\x93NUMPY\x03\0=\0{'d".to_vec(), "its header is longer than it"),
            (b"\x93NUMPY\x01\0\xff\xff{'descr'".to_vec(), "its header is longer than it"),
            (b"\x93NUMPY\x01".to_vec(), "its header is longer than it"),
        ] {
            let error = npy(&bytes).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
