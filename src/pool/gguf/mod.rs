//! GGUF files, versions 2 and 3: settings by key, and places of tensors.
//!
//! Every count, length and offset of the file is compared with the file's length before anything
//! is allocated. Lists stay in the mapped file. Start at [`GgufFile`].

mod cursor;
mod tensors;
mod value;

pub use value::{GgufList, GgufValue};

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
};

use super::{
    checkpoint::{Checkpoint, TensorPlace, open_verified},
    error::PoolError,
};
use crate::tensor::MappedFile;
use cursor::Cursor;

/// First bytes of a file.
const MAGIC: [u8; 4] = *b"GGUF";

/// Versions of the format that are read. They differ in nothing that is read here.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;

/// Key of the alignment of tensors, and the alignment without it, in bytes.
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// Largest alignment, in bytes.
const MAX_ALIGNMENT: u64 = 1 << 16;

/// Least size of a pair of key and value, in bytes: two lengths, a type and one byte.
const MIN_PAIR_BYTES: u64 = 13;

/// Open GGUF file.
#[derive(Debug, Clone)]
pub struct GgufFile {
    /// Path of the family's folder.
    folder: PathBuf,
    path: PathBuf,
    values: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, TensorPlace>,
}

impl GgufFile {
    /// Opens `folder/location` after checking its digest against `sha256`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read, has another digest, or is not a valid GGUF file. Fails
    /// on tensors that overlap, are not aligned, lie beyond the file's end, or have a type that is
    /// not supported.
    pub fn open(folder: &Path, location: &Path, sha256: &str) -> Result<Self, PoolError> {
        let file = open_verified(folder, location, sha256)?;
        Self::parse(folder, &file, location)
    }

    pub(super) fn parse(
        folder: &Path,
        file: &MappedFile,
        location: &Path,
    ) -> Result<Self, PoolError> {
        let malformed = |message: String| PoolError::Malformed {
            path: file.path().to_owned(),
            message: format!("is not a valid GGUF file: {message}"),
        };
        let mut cursor = Cursor::new(file.bytes());
        let num_tensors = header(&mut cursor).map_err(malformed)?;
        let values = pairs(&mut cursor).map_err(malformed)?;
        let alignment = alignment(&values).map_err(malformed)?;
        let mut tensors = BTreeMap::new();
        for tensor in tensors::read(&mut cursor, num_tensors, alignment).map_err(malformed)? {
            let place = TensorPlace {
                file: location.to_string_lossy().into_owned(),
                shape: tensor.shape,
                data_type: Some(tensor.data_type),
                offset: tensor.offset,
                length: tensor.length,
            };
            tensors.insert(tensor.name, place);
        }
        let (folder, path) = (folder.to_owned(), file.path().to_owned());
        Ok(Self { folder, path, values, tensors })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the value of `key`, or `None` if it is missing.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// Returns the keys and their values, in the order of the keys.
    pub fn values(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the names of the tensors and their places.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorPlace)> {
        self.tensors.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// Returns the tensors as a checkpoint, under the names that `rename` returns. A tensor for
    /// which it returns `None` is left out.
    pub fn checkpoint(&self, rename: impl Fn(&str) -> Option<String>) -> Checkpoint {
        let renamed = self.tensors.iter();
        let renamed = renamed.filter_map(|(name, place)| Some((rename(name)?, place.clone())));
        Checkpoint::of_places(&self.folder, &self.path, renamed.collect())
    }
}

/// Reads the magic number, the version and the number of tensors.
fn header(cursor: &mut Cursor<'_>) -> Result<u64, String> {
    let magic = cursor.array::<4>()?;
    if magic != MAGIC {
        return Err(format!("it starts with the bytes {magic:?}, not with `GGUF`"));
    }
    let version = cursor.u32()?;
    if !VERSIONS.contains(&version) {
        let is_swapped = VERSIONS.contains(&version.swap_bytes());
        let kind = if is_swapped { "a big-endian file" } else { "this version" };
        return Err(format!("its version is {version}; {kind} is not supported, but 2 and 3 are"));
    }
    cursor.u64()
}

/// Reads the number of pairs, and the pairs of key and value.
fn pairs(cursor: &mut Cursor<'_>) -> Result<BTreeMap<String, GgufValue>, String> {
    let count = cursor.u64()?;
    cursor.check_room("keys", count, MIN_PAIR_BYTES)?;
    let mut values = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.text()?;
        let value = GgufValue::read(cursor).map_err(|fault| format!("key `{key}`: {fault}"))?;
        match values.entry(key.to_owned()) {
            Entry::Vacant(place) => drop(place.insert(value)),
            Entry::Occupied(_) => return Err(format!("key `{key}` stands twice")),
        }
    }
    Ok(values)
}

/// Returns the alignment of tensors in bytes.
fn alignment(values: &BTreeMap<String, GgufValue>) -> Result<u64, String> {
    let Some(value) = values.get(ALIGNMENT) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let alignment = value.as_unsigned().filter(|bytes| *bytes <= MAX_ALIGNMENT);
    alignment.filter(|bytes| bytes.is_power_of_two()).ok_or_else(|| {
        format!("key `{ALIGNMENT}` is {value}, but a power of 2 up to {MAX_ALIGNMENT} is needed")
    })
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
pub(super) mod tests;
