//! Checkpoints: names, shapes and places of tensors, never the weights themselves.
//!
//! A checkpoint is one safetensors file, several of them with an index of the tensors in each, or
//! the tensors of a GGUF file.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::Display,
    ops::Range,
    path::{Component, Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::error::PoolError;
use crate::{
    onnx::{
        external::{Place, initializer, read_floats},
        proto::{TensorProto, data_type},
    },
    tensor::{FileKind, MappedFile, hex, json, read_bytes, signed},
};

/// Tensors of one or several open files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Path of the family's folder.
    folder: PathBuf,
    /// Path of the file, or of the index of the files.
    path: PathBuf,
    tensors: BTreeMap<String, TensorPlace>,
    metadata: BTreeMap<String, String>,
}

/// Key of `model.safetensors.index.json` that is read.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Place, shape and type of a checkpoint's tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Path of the file relative to the family's folder, as in external data.
    pub file: String,
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// ONNX number of the element type, or that of a type of blocks (`onnx::blocks`). `None` if
    /// networks cannot use it.
    pub data_type: Option<i32>,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Checkpoint {
    /// Opens `folder/location` after checking its digest against `sha256`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read, has another digest, or is not a valid safetensors file.
    pub fn open(folder: &Path, location: &Path, sha256: &str) -> Result<Self, PoolError> {
        let file = open_verified(folder, location, sha256)?;
        Self::parse(folder, &file, location)
    }

    /// Opens the files named in the index `folder/location`. `sha256` returns the expected digest
    /// of a file.
    ///
    /// # Errors
    ///
    /// Fails when the index does not parse, or names a file that is missing or in another folder.
    /// Fails when it names a tensor that is missing in its file. Also fails like
    /// [`open`](Self::open) on every file.
    pub fn open_sharded<'d>(
        folder: &Path,
        location: &Path,
        sha256: impl Fn(&Path) -> Result<&'d str, PoolError>,
    ) -> Result<Self, PoolError> {
        let index = read_verified(folder, location, sha256(location)?, FileKind::ShardIndex)?;
        let path = folder.join(location);
        let malformed = |message| PoolError::Malformed { path: path.clone(), message };
        let fault =
            |e: &dyn Display| malformed(format!("is not an index of safetensors files: {e}"));
        let text = str::from_utf8(&index).map_err(|e| fault(&e))?;
        let index: Index = json::parse(text).map_err(|e| fault(&e))?;
        let beside = location.parent().unwrap_or(Path::new(""));
        let mut shards: BTreeMap<&str, Self> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, shard) in &index.weight_map {
            let opened = match shards.entry(shard) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let file = beside.join(shard);
                    let is_plain = Path::new(shard).components().all(is_normal);
                    if !is_plain || !folder.join(&file).is_file() {
                        return Err(malformed(format!("names `{shard}`, which is not there")));
                    }
                    place.insert(Self::open(folder, &file, sha256(&file)?)?)
                }
            };
            tensors.insert(name.clone(), opened.tensor(name)?.clone());
        }
        let metadata = BTreeMap::new();
        Ok(Self { folder: folder.to_owned(), path, tensors, metadata })
    }

    /// Creates the checkpoint of the file at `path` with `tensors` by name.
    pub(super) fn of_places(
        folder: &Path,
        path: &Path,
        tensors: BTreeMap<String, TensorPlace>,
    ) -> Self {
        let (folder, path) = (folder.to_owned(), path.to_owned());
        Self { folder, path, tensors, metadata: BTreeMap::new() }
    }

    /// Returns the tensor `name` of shape `shape` as a weight of the same name.
    ///
    /// # Errors
    ///
    /// Fails when there is no such tensor, or it has another shape or an unusable element type.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<TensorProto, PoolError> {
        let (tensor, data_type) = self.checked(name, shape)?;
        let place =
            Place { file: tensor.file.clone(), offset: tensor.offset, length: tensor.length };
        Ok(initializer(name, data_type, dims(shape), &place))
    }

    /// Returns the rows `rows` of the tensor `name` of shape `shape` as a weight of its own. The
    /// weight is a shorter place in the file.
    ///
    /// # Errors
    ///
    /// Fails like [`weight`](Self::weight), and when `rows` is empty or out of range.
    pub fn rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<TensorProto, PoolError> {
        let all = shape.first().copied().unwrap_or(0);
        if rows == (0..all) {
            return self.weight(name, shape);
        }
        self.rows_as(name, shape, shape, rows)
    }

    /// Returns the rows `rows` of matrix `index` of the tensor `name` as a weight of its own. The
    /// tensor's shape must be `[matrices, rows, columns]`. The weight is a shorter place in the
    /// file.
    ///
    /// # Errors
    ///
    /// Fails like [`rows`](Self::rows).
    pub fn matrix(
        &self,
        name: &str,
        shape: [usize; 3],
        index: usize,
        rows: Range<usize>,
    ) -> Result<TensorProto, PoolError> {
        let [matrices, all, columns] = shape;
        let before = index.saturating_mul(all);
        let rows = before.saturating_add(rows.start)..before.saturating_add(rows.end);
        self.rows_as(name, &shape, &[matrices.saturating_mul(all), columns], rows)
    }

    /// Returns the rows `rows` of a tensor of shape `shape`, read as a tensor of shape `read`.
    fn rows_as(
        &self,
        name: &str,
        shape: &[usize],
        read: &[usize],
        rows: Range<usize>,
    ) -> Result<TensorProto, PoolError> {
        let (tensor, data_type) = self.checked(name, shape)?;
        let all = read.first().copied().unwrap_or(0);
        let mut wanted = read.to_vec();
        if let Some(first) = wanted.first_mut() {
            *first = rows.len();
        }
        if rows.end > all || rows.is_empty() {
            return Err(PoolError::TensorShape {
                path: self.folder.join(&tensor.file),
                name: name.into(),
                found: shape.to_vec(),
                expected: wanted,
            });
        }
        let row = tensor.length / all as u64;
        let place = Place {
            file: tensor.file.clone(),
            offset: tensor.offset + row * rows.start as u64,
            length: row * rows.len() as u64,
        };
        let name = format!("{name}[{}..{}]", rows.start, rows.end);
        Ok(initializer(&name, data_type, dims(&wanted), &place))
    }

    /// Returns the tensor `name` like [`weight`](Self::weight), after checking all its values.
    ///
    /// # Errors
    ///
    /// Fails like [`weight`](Self::weight), when the file cannot be read, and when a value is
    /// infinite or not a number.
    pub fn finite_weight(&self, name: &str, shape: &[usize]) -> Result<TensorProto, PoolError> {
        self.finite_values(name, shape)?;
        self.weight(name, shape)
    }

    /// Returns the values of the tensor `name` of shape `shape`.
    ///
    /// # Errors
    ///
    /// Fails like [`finite_weight`](Self::finite_weight).
    pub fn finite_values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, PoolError> {
        let weight = self.weight(name, shape)?;
        let path = self.folder.join(&self.tensor(name)?.file);
        let values = read_floats(&self.folder, &weight).map_err(|e| PoolError::Malformed {
            path: path.clone(),
            message: format!("tensor `{name}` cannot be read: {e}"),
        })?;
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(PoolError::NotFinite { path, name: name.into() })
    }

    /// Returns the place and the element type of the tensor `name`, whose shape must be `shape`.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<(&TensorPlace, i32), PoolError> {
        let tensor = self.tensor(name)?;
        let path = || self.folder.join(&tensor.file);
        if tensor.shape != shape {
            return Err(PoolError::TensorShape {
                path: path(),
                name: name.into(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let data_type = tensor.data_type.ok_or_else(|| PoolError::TensorType {
            path: path(),
            name: name.into(),
            found: "another type".into(),
        })?;
        Ok((tensor, data_type))
    }

    /// Returns the tensors whose names start with `prefix`, with `prefix` removed from their names.
    #[must_use]
    pub fn part(&self, prefix: &str) -> Self {
        let inside = self.tensors.iter().filter_map(|(name, place)| {
            Some((name.strip_prefix(prefix)?.to_owned(), place.clone()))
        });
        Self { tensors: inside.collect(), ..self.clone() }
    }

    /// Returns these tensors, and those of `base` whose names are not among them. Both lie in files
    /// of the same folder.
    #[must_use]
    pub fn over(mut self, base: Self) -> Self {
        for (name, place) in base.tensors {
            self.tensors.entry(name).or_insert(place);
        }
        self
    }

    /// Returns the names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the place of the tensor `name`.
    ///
    /// # Errors
    ///
    /// Fails when there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<&TensorPlace, PoolError> {
        self.tensors
            .get(name)
            .ok_or_else(|| PoolError::NoTensor { path: self.path.clone(), name: name.into() })
    }

    /// Returns whether the tensors `one` and `other` have the same type, shape and bytes.
    ///
    /// # Errors
    ///
    /// Fails when one of them is missing, and when a file cannot be read.
    pub(crate) fn is_same(&self, one: &str, other: &str) -> Result<bool, PoolError> {
        let (one, other) = (self.tensor(one)?, self.tensor(other)?);
        if (&one.shape, one.data_type) != (&other.shape, other.data_type) {
            return Ok(false);
        }
        let open = |place: &TensorPlace| {
            let path = self.folder.join(&place.file);
            MappedFile::open(&path).map_err(|source| PoolError::Unreadable { path, source })
        };
        let files = [open(one)?, open(other)?];
        Ok(bytes_of(&files[0], one) == bytes_of(&files[1], other))
    }

    /// Returns whether the checkpoint has a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the path of the file, or of the index of the files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the metadata entry `key`, or `None` if it is missing.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub(super) fn parse(
        folder: &Path,
        file: &MappedFile,
        location: &Path,
    ) -> Result<Self, PoolError> {
        let malformed = |message: String| PoolError::Malformed {
            path: file.path().to_owned(),
            message: format!("is not a valid safetensors file: {message}"),
        };
        let (header, metadata) =
            SafeTensors::read_metadata(file.bytes()).map_err(|e| malformed(e.to_string()))?;
        let start = 8 + header as u64;
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let place = TensorPlace {
                file: location.to_string_lossy().into_owned(),
                shape: info.shape.clone(),
                data_type: onnx_type(info.dtype),
                offset: start + begin as u64,
                length: (end - begin) as u64,
            };
            tensors.insert(name, place);
        }
        let extra = metadata.metadata().clone().unwrap_or_default();
        Ok(Self {
            folder: folder.to_owned(),
            path: file.path().to_owned(),
            tensors,
            metadata: extra.into_iter().collect(),
        })
    }
}

/// Returns the bytes of a tensor, or `None` if the file is shorter than it was.
fn bytes_of<'f>(file: &'f MappedFile, place: &TensorPlace) -> Option<&'f [u8]> {
    let start = usize::try_from(place.offset).ok()?;
    let end = start.checked_add(usize::try_from(place.length).ok()?)?;
    file.bytes().get(start..end)
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
) -> Result<MappedFile, PoolError> {
    let path = folder.join(location);
    let file = MappedFile::open(&path)
        .map_err(|source| PoolError::Unreadable { path: path.clone(), source })?;
    verify(path, sha256, file.sha256())?;
    Ok(file)
}

/// Reads `folder/location`, a small file of the kind `kind`, and checks its digest.
///
/// # Errors
///
/// Fails when the file cannot be read, is too large for its kind or has another digest.
pub(crate) fn read_verified(
    folder: &Path,
    location: &Path,
    sha256: &str,
    kind: FileKind,
) -> Result<Vec<u8>, PoolError> {
    let path = folder.join(location);
    let bytes = read_bytes(&path, kind)
        .map_err(|source| PoolError::Unreadable { path: path.clone(), source })?;
    verify(path, sha256, hex(&Sha256::digest(&bytes)))?;
    Ok(bytes)
}

fn verify(path: PathBuf, sha256: &str, found: String) -> Result<(), PoolError> {
    if found.eq_ignore_ascii_case(sha256) {
        return Ok(());
    }
    Err(PoolError::Digest { path, expected: sha256.into(), found })
}

/// Returns extents in ONNX's integer type.
fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|extent| signed(*extent)).collect()
}

fn is_normal(component: Component<'_>) -> bool {
    matches!(component, Component::Normal(_))
}

fn onnx_type(dtype: Dtype) -> Option<i32> {
    match dtype {
        Dtype::F32 => Some(data_type::FLOAT),
        Dtype::F16 => Some(data_type::FLOAT16),
        Dtype::BF16 => Some(data_type::BFLOAT16),
        _ => None,
    }
}
