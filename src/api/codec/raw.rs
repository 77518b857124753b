//! Tensors as the protocol's raw bytes: little-endian and row-major. Each element of `BYTES`
//! follows its length in four bytes.

use half::{bf16, f16};

use crate::tensor::{DataType, TensorData};

/// Number of bytes of the length before each element of `BYTES`.
const LENGTH_BYTES: usize = 4;

/// Reads `count` elements of type `found` as elements of `wanted`, the type that the model takes.
///
/// Narrow integers become `INT64`; half and double precision become `FP32`.
///
/// # Errors
///
/// Fails if `raw` does not hold `count` elements, or if one of them does not fit `wanted`.
pub(crate) fn decode_raw(
    raw: &[u8],
    count: usize,
    found: DataType,
    wanted: DataType,
) -> Result<TensorData, String> {
    if found == DataType::Bytes {
        return decode_bytes(raw, count).map(TensorData::Bytes);
    }
    if count.checked_mul(found.size()) != Some(raw.len()) {
        let (size, len) = (found.size(), raw.len());
        return Err(format!(
            "its data has {len} bytes, but {count} {found} of {size} bytes each \
                            are needed"
        ));
    }
    match wanted {
        DataType::F32 => decode_floats(raw, found).map(TensorData::F32),
        _ => decode_integers(raw, found).map(TensorData::I64),
    }
}

/// Returns the number of raw bytes of `data`.
pub(crate) fn raw_len(data: &TensorData) -> usize {
    match data {
        TensorData::F32(values) => size_of_val(values.as_slice()),
        TensorData::I64(values) => size_of_val(values.as_slice()),
        TensorData::Bytes(elements) => {
            elements.iter().map(|element| element.len() + LENGTH_BYTES).sum()
        }
    }
}

/// Appends the elements of `data` to `raw` as raw bytes.
///
/// # Errors
///
/// Fails if an element of `BYTES` is longer than its length field can express.
pub(crate) fn append_raw(raw: &mut Vec<u8>, data: &TensorData) -> Result<(), String> {
    match data {
        TensorData::F32(values) => flatten(raw, values, |value| value.to_le_bytes()),
        TensorData::I64(values) => flatten(raw, values, |value| value.to_le_bytes()),
        TensorData::Bytes(elements) => {
            for element in elements {
                let length = u32::try_from(element.len())
                    .map_err(|_| format!("an element has {} bytes", element.len()))?;
                raw.extend_from_slice(&length.to_le_bytes());
                raw.extend_from_slice(element);
            }
        }
    }
    Ok(())
}

/// Appends elements of `N` bytes each to `raw`.
pub(crate) fn flatten<T: Copy, const N: usize>(
    raw: &mut Vec<u8>,
    values: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
) {
    let start = raw.len();
    raw.resize(start + values.len() * N, 0);
    for (place, value) in raw[start..].chunks_exact_mut(N).zip(values) {
        place.copy_from_slice(&to_bytes(*value));
    }
}

/// Reads the elements of `N` bytes each.
fn elements<const N: usize, T>(raw: &[u8], from_bytes: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = raw.as_chunks::<N>();
    chunks.iter().map(|bytes| from_bytes(*bytes)).collect()
}

fn decode_floats(raw: &[u8], found: DataType) -> Result<Vec<f32>, String> {
    Ok(match found {
        DataType::F32 => elements(raw, f32::from_le_bytes),
        DataType::F16 => elements(raw, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DataType::BF16 => elements(raw, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        #[expect(clippy::cast_possible_truncation, reason = "rounding to FP32 is what is needed")]
        DataType::F64 => elements(raw, |bytes| f64::from_le_bytes(bytes) as f32),
        _ => return Err(format!("{found} cannot be read as FP32")),
    })
}

fn decode_integers(raw: &[u8], found: DataType) -> Result<Vec<i64>, String> {
    Ok(match found {
        DataType::I64 => elements(raw, i64::from_le_bytes),
        DataType::I32 => elements(raw, |bytes| i64::from(i32::from_le_bytes(bytes))),
        DataType::I16 => elements(raw, |bytes| i64::from(i16::from_le_bytes(bytes))),
        DataType::I8 => elements(raw, |bytes| i64::from(i8::from_le_bytes(bytes))),
        DataType::U32 => elements(raw, |bytes| i64::from(u32::from_le_bytes(bytes))),
        DataType::U16 => elements(raw, |bytes| i64::from(u16::from_le_bytes(bytes))),
        DataType::U8 => elements(raw, |bytes| i64::from(u8::from_le_bytes(bytes))),
        DataType::Bool => elements(raw, |[byte]| i64::from(byte != 0)),
        DataType::U64 => narrow(&elements(raw, u64::from_le_bytes))?,
        _ => return Err(format!("{found} cannot be read as INT64")),
    })
}

/// Converts integers to `INT64`.
///
/// # Errors
///
/// Fails if one of them does not fit.
pub(crate) fn narrow(values: &[u64]) -> Result<Vec<i64>, String> {
    let narrow = |(index, value): (usize, &u64)| {
        i64::try_from(*value).map_err(|_| misfit(index, DataType::I64))
    };
    values.iter().enumerate().map(narrow).collect()
}

/// Returns the error for the element at `index`, without the element, which may be a token.
pub(crate) fn misfit(index: usize, wanted: DataType) -> String {
    format!("element {index} does not fit {wanted}")
}

fn decode_bytes(raw: &[u8], count: usize) -> Result<Vec<Vec<u8>>, String> {
    // Every element has at least its length field, so `raw` bounds `count` before memory is
    // allocated.
    if count > raw.len() / LENGTH_BYTES {
        let len = raw.len();
        return Err(format!("its data has {len} bytes, too few for {count} elements of BYTES"));
    }
    let mut rest = raw;
    let mut elements = Vec::with_capacity(count);
    for index in 0..count {
        let cut = || format!("its data ends within element {index} of {count}");
        let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
        let (element, after) = after.split_at_checked(length).ok_or_else(cut)?;
        elements.push(element.to_vec());
        rest = after;
    }
    if !rest.is_empty() {
        return Err(format!("its data has {} bytes after its {count} elements", rest.len()));
    }
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_type_is_read_as_what_models_take() {
        let half = f16::from_f32(1.5).to_le_bytes();
        let brain = bf16::from_f32(-2.0).to_le_bytes();
        for (raw, found, wanted) in [
            (&1.5_f32.to_le_bytes()[..], DataType::F32, TensorData::F32(vec![1.5])),
            (&half[..], DataType::F16, TensorData::F32(vec![1.5])),
            (&brain[..], DataType::BF16, TensorData::F32(vec![-2.0])),
            (&0.25_f64.to_le_bytes()[..], DataType::F64, TensorData::F32(vec![0.25])),
            (&(-3_i64).to_le_bytes()[..], DataType::I64, TensorData::I64(vec![-3])),
            (&(-3_i32).to_le_bytes()[..], DataType::I32, TensorData::I64(vec![-3])),
            (&(-3_i16).to_le_bytes()[..], DataType::I16, TensorData::I64(vec![-3])),
            (&[0xfd][..], DataType::I8, TensorData::I64(vec![-3])),
            (&7_u64.to_le_bytes()[..], DataType::U64, TensorData::I64(vec![7])),
            (&7_u32.to_le_bytes()[..], DataType::U32, TensorData::I64(vec![7])),
            (&7_u16.to_le_bytes()[..], DataType::U16, TensorData::I64(vec![7])),
            (&[255][..], DataType::U8, TensorData::I64(vec![255])),
            (&[1][..], DataType::Bool, TensorData::I64(vec![1])),
            (b"\x02\0\0\0ab", DataType::Bytes, TensorData::Bytes(vec![b"ab".to_vec()])),
        ] {
            let read = decode_raw(raw, 1, found, wanted.data_type());
            assert_eq!(read, Ok(wanted), "{found}");
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        for (raw, count, found, reason) in [
            (&[0; 7][..], 2, DataType::F32, "has 7 bytes, but 2 FP32 of 4 bytes each"),
            (&[0; 8][..], usize::MAX, DataType::F32, "has 8 bytes"),
            (&[0; 3][..], 1, DataType::Bytes, "too few for 1 elements"),
            (&[0; 4][..], usize::MAX, DataType::Bytes, "too few"),
            (b"\x05\0\0\0ab", 1, DataType::Bytes, "ends within element 0 of 1"),
            (b"\xff\xff\xff\xffab", 1, DataType::Bytes, "ends within element 0 of 1"),
            (b"\x01\0\0\0ab", 1, DataType::Bytes, "1 bytes after its 1 elements"),
            (b"\x04\0\0\0abcd", 2, DataType::Bytes, "ends within element 1 of 2"),
            (&[255; 8][..], 1, DataType::U64, "does not fit INT64"),
        ] {
            let wanted = if found == DataType::F32 { found } else { DataType::I64 };
            let error = decode_raw(raw, count, found, wanted).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            floats: Vec<i16>, integers: Vec<i64>, elements: Vec<Vec<u8>>
        ) {
            let floats: Vec<f32> = floats.into_iter().map(f32::from).collect();
            for data in
                [TensorData::F32(floats), TensorData::I64(integers), TensorData::Bytes(elements)]
            {
                let data_type = data.data_type();
                let mut raw = Vec::new();
                append_raw(&mut raw, &data).expect("short elements");
                prop_assert_eq!(raw.len(), raw_len(&data));
                let back = decode_raw(&raw, data.len(), data_type, data_type);
                prop_assert_eq!(back, Ok(data));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(raw: Vec<u8>, count: usize) {
            let result = decode_raw(&raw, count % 64, DataType::Bytes, DataType::Bytes);
            if let Ok(TensorData::Bytes(elements)) = result {
                prop_assert_eq!(elements.len(), count % 64);
            }
        }
    }
}
