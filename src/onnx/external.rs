//! Weights that stay in their files: initializers as byte ranges of files in the family's folder.

use std::{
    io::{Read, Seek, SeekFrom},
    path::{Component, Path},
};

use bytes::Bytes;
use prost::Message;

use super::{
    OnnxError,
    blocks::{BlockType, dequantize},
    error::OPSETS,
    proto::{EXTERNAL, GraphProto, ModelProto, StringStringEntry, TensorProto, data_type},
};
use crate::tensor::{MappedFile, open_file};

/// Least size of an initializer left in its file, in bytes. ONNX Runtime's optimizers read the
/// smaller ones, which stay inside the model.
const MIN_EXTERNAL_BYTES: usize = 256;

/// Size of the parts in which the values of a weight are read, in bytes. It is a multiple of every
/// element's size.
const PART_BYTES: usize = 64 << 10;

/// Byte range of a file in the family's folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Path of the file, relative to the family's folder.
    pub file: String,
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Reads the ONNX file `folder/location`. Its large weights stay in the file, or in the files
/// beside it that hold them.
///
/// # Errors
///
/// Fails when the file cannot be read or is not an ONNX model, and when its opset is not supported.
/// Fails when its nodes are out of order (a cycle). Fails when a weight lies outside the file's
/// folder or beyond the end of its file.
pub fn read_model(folder: &Path, location: &Path) -> Result<ModelProto, OnnxError> {
    let path = folder.join(location);
    let file = MappedFile::open(&path)
        .map_err(|source| OnnxError::Unreadable { path: path.clone(), source })?;
    let mut model = ModelProto::decode(file.bytes().clone())
        .map_err(|source| OnnxError::Malformed { path: path.clone(), source })?;
    let opset =
        model.opset_import.iter().find(|opset| matches!(opset.domain.as_str(), "" | "ai.onnx"));
    if let Some(opset) = opset.filter(|opset| !OPSETS.contains(&opset.version)) {
        return Err(OnnxError::Opset { found: opset.version });
    }
    let graph = model.graph.as_mut().ok_or(OnnxError::NoGraph { path })?;
    for tensor in &mut graph.initializer {
        if tensor.data_location == Some(EXTERNAL) {
            place_beside(folder, location, tensor)?;
        } else {
            leave_in_file(tensor, file.bytes(), &location.to_string_lossy());
        }
    }
    // Old exports also list weights among the inputs.
    let initializers: std::collections::HashSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    graph.input.retain(|input| !initializers.contains(input.name.as_str()));
    check_order(graph)?;
    Ok(model)
}

/// Points `tensor`, whose weight lies in a file beside the model, to its place relative to
/// `folder`.
fn place_beside(folder: &Path, model: &Path, tensor: &mut TensorProto) -> Result<(), OnnxError> {
    let refuse = |reason: String| OnnxError::Initializer { name: tensor.name.clone(), reason };
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key);
    let number = |key: &str| entry(key).map(|entry| entry.value.parse::<u64>()).transpose();
    let wrong = |_| refuse("its external data has a place that is not a number".into());
    let (offset, length) =
        (number("offset").map_err(wrong)?.unwrap_or(0), number("length").map_err(wrong)?);
    let name = entry("location").map(|entry| entry.value.clone()).unwrap_or_default();
    let is_plain = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !is_plain {
        return Err(refuse(format!("its data lies at `{name}`, outside the model's folder")));
    }
    let location = model.parent().unwrap_or(Path::new("")).join(&name);
    let path = folder.join(&location);
    let size = std::fs::metadata(&path)
        .map_err(|source| OnnxError::Unreadable { path: path.clone(), source })?
        .len();
    let length = length.unwrap_or(size.saturating_sub(offset));
    if offset.checked_add(length).is_none_or(|end| end > size) {
        let reason = format!("bytes {offset} and {length} more lie beyond `{name}`'s {size}");
        return Err(refuse(reason));
    }
    let place = Place { file: location.to_string_lossy().into_owned(), offset, length };
    *tensor = initializer(&tensor.name, tensor.data_type, tensor.dims.clone(), &place);
    Ok(())
}

/// Creates an initializer whose bytes lie at `place`.
pub fn initializer(name: &str, data_type: i32, dims: Vec<i64>, place: &Place) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntry { key: key.into(), value };
    TensorProto {
        name: name.into(),
        data_type,
        dims,
        data_location: Some(EXTERNAL),
        external_data: vec![
            entry("location", place.file.clone()),
            entry("offset", place.offset.to_string()),
            entry("length", place.length.to_string()),
        ],
        ..TensorProto::default()
    }
}

/// Returns the place of the bytes of `tensor`, or `None` if they are inside the model.
pub fn place_of(tensor: &TensorProto) -> Option<Place> {
    let find = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| &e.value);
    Some(Place {
        file: find("location")?.clone(),
        offset: find("offset")?.parse().ok()?,
        length: find("length")?.parse().ok()?,
    })
}

/// Reads the bytes of `tensor` from the model or from its file.
///
/// # Errors
///
/// Fails when the file cannot be read or the tensor keeps its values in typed fields.
pub fn read_bytes(folder: &Path, tensor: &TensorProto) -> Result<Bytes, OnnxError> {
    let Some(place) = place_of(tensor) else {
        return inline_bytes(tensor);
    };
    let path = folder.join(&place.file);
    let read = || {
        let mut file = open_file(&path)?;
        file.seek(SeekFrom::Start(place.offset))?;
        let mut bytes = vec![0; usize::try_from(place.length).unwrap_or(usize::MAX)];
        file.read_exact(&mut bytes)?;
        Ok(Bytes::from(bytes))
    };
    read().map_err(|source| OnnxError::Unreadable { path: path.clone(), source })
}

/// Returns the bytes of `tensor`; bytes in a file are mapped, for callers that read few of them.
///
/// # Errors
///
/// Fails when the file cannot be mapped or is too short. Fails when the tensor keeps its values in
/// typed fields.
pub fn map_bytes(folder: &Path, tensor: &TensorProto) -> Result<Bytes, OnnxError> {
    let Some(place) = place_of(tensor) else {
        return inline_bytes(tensor);
    };
    let path = folder.join(&place.file);
    let file = MappedFile::open(&path).map_err(|source| OnnxError::Unreadable { path, source })?;
    let whole = file.bytes();
    let [start, length] = [place.offset, place.length].map(usize::try_from);
    let range = start.ok().zip(length.ok()).and_then(|(s, n)| Some(s..s.checked_add(n)?));
    let range = range.filter(|range| range.end <= whole.len());
    let beyond = || refusal(tensor, "it lies beyond its file's end");
    range.map(|range| whole.slice(range)).ok_or_else(beyond)
}

fn inline_bytes(tensor: &TensorProto) -> Result<Bytes, OnnxError> {
    tensor.raw_data.clone().ok_or_else(|| refusal(tensor, "it has no raw data"))
}

fn refusal(tensor: &TensorProto, reason: &str) -> OnnxError {
    OnnxError::Initializer { name: tensor.name.clone(), reason: reason.into() }
}

/// Reads the values of `tensor` (F32, F16, BF16 or blocks) from the model or from its file.
///
/// # Errors
///
/// Fails when the values cannot be read, have another type, or do not match the shape's number of
/// elements.
pub fn read_floats(folder: &Path, tensor: &TensorProto) -> Result<Vec<f32>, OnnxError> {
    if let Some(block_type) = BlockType::of_data_type(tensor.data_type) {
        let values = dequantize(block_type, &read_bytes(folder, tensor)?);
        return checked(tensor, values);
    }
    let Some(place) = place_of(tensor) else {
        let bytes = inline_bytes(tensor)?;
        let mut values = floats_for(tensor, bytes.len() as u64)?;
        extend(&mut values, tensor.data_type, &bytes);
        return Ok(values);
    };
    let mut values = floats_for(tensor, place.length)?;
    let path = folder.join(&place.file);
    let read = || {
        let mut file = open_file(&path)?;
        file.seek(SeekFrom::Start(place.offset))?;
        // A part stays in the processor's cache until its values are taken from it.
        let (mut part, mut left) = (vec![0; PART_BYTES], place.length);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(PART_BYTES).min(PART_BYTES);
            file.read_exact(&mut part[..length])?;
            extend(&mut values, tensor.data_type, &part[..length]);
            left -= length as u64;
        }
        Ok(values)
    };
    read().map_err(|source| OnnxError::Unreadable { path: path.clone(), source })
}

/// Returns `values` if they are as many as the shape of `tensor` says.
fn checked(tensor: &TensorProto, values: Vec<f32>) -> Result<Vec<f32>, OnnxError> {
    let extents = tensor.dims.iter().map(|extent| usize::try_from(*extent).ok());
    let mut extents = extents.chain([Some(1)]);
    let elements = extents.try_fold(1_usize, |product, extent| product.checked_mul(extent?));
    if elements == Some(values.len()) {
        return Ok(values);
    }
    let reason = format!("{} values are not its {:?} elements", values.len(), tensor.dims);
    Err(OnnxError::Initializer { name: tensor.name.clone(), reason })
}

/// Returns room for the values of `tensor`. Fails unless `num_bytes` hold them.
fn floats_for(tensor: &TensorProto, num_bytes: u64) -> Result<Vec<f32>, OnnxError> {
    let size = match tensor.data_type {
        data_type::FLOAT => 4,
        data_type::FLOAT16 | data_type::BFLOAT16 => 2,
        _ => 0,
    };
    let extents = tensor.dims.iter().map(|extent| u64::try_from(*extent).ok());
    let mut elements = extents.chain([Some(1)]);
    let elements = elements.try_fold(1_u64, |product, extent| product.checked_mul(extent?));
    let fits = elements.filter(|count| count.checked_mul(size) == Some(num_bytes) && size > 0);
    let count = fits.and_then(|count| usize::try_from(count).ok());
    count.map(Vec::with_capacity).ok_or_else(|| OnnxError::Initializer {
        name: tensor.name.clone(),
        reason: format!("{num_bytes} bytes do not hold its {:?} elements", tensor.dims),
    })
}

/// Appends the values in `bytes`, which hold whole elements.
fn extend(values: &mut Vec<f32>, data_type: i32, bytes: &[u8]) {
    let (pairs, fours) = (bytes.as_chunks::<2>().0.iter(), bytes.as_chunks::<4>().0.iter());
    match data_type {
        data_type::FLOAT => values.extend(fours.map(|bytes| f32::from_le_bytes(*bytes))),
        data_type::FLOAT16 => {
            values.extend(pairs.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()));
        }
        _ => values.extend(pairs.map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32())),
    }
}

/// Replaces the raw data of `tensor` by its place if it is a large enough slice of `file`.
fn leave_in_file(tensor: &mut TensorProto, file: &Bytes, location: &str) {
    let Some(raw) = tensor.raw_data.as_ref().filter(|raw| raw.len() >= MIN_EXTERNAL_BYTES) else {
        return;
    };
    let (start, base) = (raw.as_ptr() as usize, file.as_ptr() as usize);
    let place = match start.checked_sub(base) {
        Some(offset) if offset + raw.len() <= file.len() => {
            Place { file: location.into(), offset: offset as u64, length: raw.len() as u64 }
        }
        _ => return,
    };
    *tensor = initializer(&tensor.name, tensor.data_type, tensor.dims.clone(), &place);
}

/// Checks that every node reads only tensors made before it, as the standard demands.
fn check_order(graph: &GraphProto) -> Result<(), OnnxError> {
    let mut known: std::collections::HashSet<&str> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name.as_str())
        .chain(graph.input.iter().map(|input| input.name.as_str()))
        .chain([""])
        .collect();
    for node in &graph.node {
        if let Some(tensor) = node.input.iter().find(|name| !known.contains(name.as_str())) {
            return Err(OnnxError::Unordered {
                node: format!("{} {}", node.op_type, node.name),
                tensor: tensor.clone(),
            });
        }
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if !known.insert(output) {
                return Err(OnnxError::Duplicate { tensor: output.clone() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_a_file_part_by_part_and_only_if_they_are_all_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let count = PART_BYTES / 4 + 3;
        let expected: Vec<f32> = (0_u16..).take(count).map(f32::from).collect();
        let bytes: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.path().join("w"), [&[7; 5], &bytes[..]].concat()).expect("written");
        let tensor = |data_type, count: usize, length: usize| {
            let place = Place { file: "w".into(), offset: 5, length: length as u64 };
            initializer("w", data_type, vec![1, count as i64], &place)
        };
        let read = |tensor: &TensorProto| read_floats(folder.path(), tensor);
        let whole = tensor(data_type::FLOAT, count, bytes.len());
        assert_eq!(read(&whole).expect("read"), expected);
        let halves = tensor(data_type::BFLOAT16, 2 * count, bytes.len());
        let values = read(&halves).expect("read");
        assert_eq!((values[0], values[3], values.len()), (0.0, 1.0, 2 * count));
        for wrong in [
            tensor(data_type::FLOAT, count + 1, bytes.len()),
            tensor(data_type::FLOAT16, count, bytes.len()),
            tensor(data_type::INT64, count, bytes.len()),
        ] {
            let error = read(&wrong).expect_err("refused").to_string();
            assert!(error.contains("do not hold its [1, "), "{error}");
        }
        let beyond = tensor(data_type::FLOAT, count + 1, bytes.len() + 4);
        assert!(matches!(read(&beyond), Err(OnnxError::Unreadable { .. })));
    }
}
