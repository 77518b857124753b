//! Safetensors files: names, shapes and places, never the weights themselves.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};

use super::ArchError;
use crate::{
    onnx::{
        external::{Place, initializer},
        proto::{TensorProto, data_type},
    },
    tensor::MappedFile,
};

/// An open safetensors file.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    /// The path relative to the family's folder, as external data names it.
    location: String,
    tensors: BTreeMap<String, TensorPlace>,
    metadata: BTreeMap<String, String>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// The element type, as ONNX numbers it, or `None` when networks cannot use it.
    pub data_type: Option<i32>,
    /// Where the bytes start in the file.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u64,
}

impl Checkpoint {
    /// Opens `folder/location`, checking its digest against `sha256`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read, has another digest, or is no valid safetensors file.
    pub fn open(folder: &Path, location: &Path, sha256: &str) -> Result<Self, ArchError> {
        let file = open_verified(folder, location, sha256)?;
        Self::parse(&file, location)
    }

    /// Returns the tensor `name` as a weight called `name`, whose shape must be `shape`.
    ///
    /// # Errors
    ///
    /// Fails when there is no such tensor, or it has another shape or an unusable element type.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<TensorProto, ArchError> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            return Err(ArchError::TensorShape {
                path: self.path.clone(),
                name: name.into(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let data_type = tensor.data_type.ok_or_else(|| ArchError::TensorType {
            path: self.path.clone(),
            name: name.into(),
            found: "another type".into(),
        })?;
        let place =
            Place { file: self.location.clone(), offset: tensor.offset, length: tensor.length };
        let dims = shape.iter().map(|extent| i64::try_from(*extent).unwrap_or(i64::MAX)).collect();
        Ok(initializer(name, data_type, dims, &place))
    }

    /// Returns some rows of the tensor `name`, whose shape must be `shape`, as a weight of its own:
    /// a shorter place in the file.
    ///
    /// # Errors
    ///
    /// Fails like [`weight`](Self::weight), and when there are no such rows.
    pub fn rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: std::ops::Range<usize>,
    ) -> Result<TensorProto, ArchError> {
        let whole = self.weight(name, shape)?;
        let all = shape.first().copied().unwrap_or(0);
        if rows == (0..all) {
            return Ok(whole);
        }
        let mut wanted = shape.to_vec();
        if let Some(first) = wanted.first_mut() {
            *first = rows.len();
        }
        let tensor = self.tensor(name)?;
        if rows.end > all || rows.is_empty() {
            return Err(ArchError::TensorShape {
                path: self.path.clone(),
                name: name.into(),
                found: shape.to_vec(),
                expected: wanted,
            });
        }
        let row = tensor.length / all as u64;
        let place = Place {
            file: self.location.clone(),
            offset: tensor.offset + row * rows.start as u64,
            length: row * rows.len() as u64,
        };
        let dims = wanted.iter().map(|extent| i64::try_from(*extent).unwrap_or(i64::MAX)).collect();
        let name = format!("{name}[{}..{}]", rows.start, rows.end);
        Ok(initializer(&name, whole.data_type, dims, &place))
    }

    /// Returns the tensors whose names start with `prefix`, under what follows it.
    #[must_use]
    pub fn part(&self, prefix: &str) -> Self {
        let inside = self.tensors.iter().filter_map(|(name, place)| {
            Some((name.strip_prefix(prefix)?.to_owned(), place.clone()))
        });
        Self { tensors: inside.collect(), ..self.clone() }
    }

    /// Returns the tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns where the tensor `name` lies.
    ///
    /// # Errors
    ///
    /// Fails when there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<&TensorPlace, ArchError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ArchError::NoTensor { path: self.path.clone(), name: name.into() })
    }

    /// Tells whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the metadata entry `key`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub(super) fn parse(file: &MappedFile, location: &Path) -> Result<Self, ArchError> {
        let malformed = |message: String| ArchError::Malformed {
            path: file.path().to_owned(),
            message: format!("is no valid safetensors file: {message}"),
        };
        let (header, metadata) =
            SafeTensors::read_metadata(file.bytes()).map_err(|e| malformed(e.to_string()))?;
        let start = 8 + header as u64;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let place = TensorPlace {
                shape: info.shape.clone(),
                data_type: onnx_type(info.dtype),
                offset: start + begin as u64,
                length: (end - begin) as u64,
            };
            tensors.insert(name, place);
        }
        let extra = metadata.metadata().clone().unwrap_or_default();
        Ok(Self {
            path: file.path().to_owned(),
            location: location.to_string_lossy().into_owned(),
            tensors,
            metadata: extra.into_iter().collect(),
        })
    }
}

/// Maps `folder/location` and checks its digest.
///
/// # Errors
///
/// Fails when the file cannot be read or has another digest.
pub(crate) fn open_verified(
    folder: &Path,
    location: &Path,
    sha256: &str,
) -> Result<MappedFile, ArchError> {
    let path = folder.join(location);
    let file = MappedFile::open(&path)
        .map_err(|source| ArchError::Unreadable { path: path.clone(), source })?;
    let found = file.sha256();
    if !found.eq_ignore_ascii_case(sha256) {
        return Err(ArchError::Digest { path, expected: sha256.into(), found });
    }
    Ok(file)
}

fn onnx_type(dtype: Dtype) -> Option<i32> {
    match dtype {
        Dtype::F32 => Some(data_type::FLOAT),
        Dtype::F16 => Some(data_type::FLOAT16),
        Dtype::BF16 => Some(data_type::BFLOAT16),
        _ => None,
    }
}
