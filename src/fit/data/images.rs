//! Labelled images for fitting and evaluation: IDX and NPY files, and folders of image files.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    family::Manifest,
    fit::error::FitError,
    input::{Pixels, decode_picture, raw_picture},
    tensor::read_bytes,
};

/// Maximum number of values in an IDX or NPY file.
const MAX_VALUES: u64 = 1 << 33;

/// Images with their classes.
#[derive(Debug, Clone)]
pub struct ImageSet {
    path: PathBuf,
    pictures: Pictures,
    labels: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Pictures {
    /// Bytes `[images, height, width, channels]`.
    Raw { bytes: Vec<u8>, shape: [u32; 3] },
    /// Paths of image files.
    Files(Vec<PathBuf>),
}

/// Array of bytes with its shape.
struct Array {
    shape: Vec<u64>,
    values: Vec<u8>,
}

impl ImageSet {
    /// Reads images from a folder of `class/name.png` or `.jpg`, or from an IDX or NPY file of
    /// bytes.
    ///
    /// `labels` is the file of labels for an IDX or NPY file. By default, the labels of an IDX file
    /// are read from the file beside it.
    ///
    /// # Errors
    ///
    /// Fails when files cannot be read, have another form or contradict each other. Fails when a
    /// class is missing in the family.
    pub fn read(
        path: &Path,
        labels: Option<&Path>,
        manifest: &Manifest,
        limit: Option<usize>,
    ) -> Result<Self, FitError> {
        let limit = limit.unwrap_or(usize::MAX);
        let mut set = if path.is_dir() {
            Self::read_folder(path, manifest)?
        } else {
            let beside = path.to_string_lossy().replace("images-idx3", "labels-idx1");
            let labels = labels.map_or_else(|| PathBuf::from(beside), Path::to_owned);
            Self::read_arrays(path, &labels)?
        };
        let classes = manifest.output.width;
        if let Some(label) = set.labels.iter().find(|label| **label >= classes) {
            let message = format!("has the label {label}, but there are {classes} classes");
            return Err(FitError::Malformed { path: path.to_owned(), message });
        }
        set.keep(limit);
        Ok(set)
    }

    /// Keeps at most `limit` images: the first of a file, and of a folder as many of each class.
    fn keep(&mut self, limit: usize) {
        if let Pictures::Files(files) = &mut self.pictures
            && limit < files.len()
        {
            let kept = (0..limit).map(|index| index * files.len() / limit);
            let kept: Vec<usize> = kept.collect();
            *files = kept.iter().map(|index| files[*index].clone()).collect();
            self.labels = kept.iter().map(|index| self.labels[*index]).collect();
        }
        self.labels.truncate(limit);
    }

    /// Returns the file's or folder's name without its parent folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the class of each image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Returns the images at `positions` as the pixels that stems read.
    ///
    /// # Errors
    ///
    /// Fails when an image cannot be read or decoded.
    pub fn pixels(&self, positions: &[usize], manifest: &Manifest) -> Result<Pixels, FitError> {
        let spec = manifest
            .image
            .as_ref()
            .ok_or_else(|| FitError::Family("the family reads no images".into()))?;
        let mut values = Vec::new();
        for position in positions {
            let pixels = match &self.pictures {
                Pictures::Raw { bytes, shape } => {
                    let len = shape.iter().map(|extent| *extent as usize).product::<usize>();
                    let bytes = bytes.get(position * len..(position + 1) * len);
                    let pixels = bytes.and_then(|bytes| raw_picture(bytes, *shape, spec));
                    pixels.ok_or_else(|| {
                        let message = format!("image {position} is not 1 or 3 channels of bytes");
                        FitError::Malformed { path: self.path.clone(), message }
                    })?
                }
                Pictures::Files(files) => {
                    let path = files[*position].clone();
                    let bytes = read_bytes(&path)
                        .map_err(|reason| FitError::File { path: path.clone(), reason })?;
                    decode_picture(&bytes, spec, manifest.limits.max_pixels)
                        .map_err(|e| FitError::Malformed { path, message: e.to_string() })?
                }
            };
            values.extend(pixels.values);
        }
        Ok(Pixels { shape: [spec.channels, spec.height, spec.width], values })
    }

    fn read_folder(path: &Path, manifest: &Manifest) -> Result<Self, FitError> {
        let classes = entries(path)?.into_iter().filter(|entry| entry.is_dir());
        let classes: Vec<PathBuf> = classes.collect();
        let named = &manifest.output.labels;
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for class in &classes {
            let name = class.file_name().unwrap_or_default().to_string_lossy();
            let label = named.iter().position(|label| *label == name);
            // Without names of classes, a folder is called by its class's number.
            let number = || name.parse().ok().filter(|number| *number < manifest.output.width);
            let label = if named.is_empty() { number() } else { label };
            let label = label.ok_or_else(|| FitError::Malformed {
                path: class.clone(),
                message: match named.is_empty() {
                    true => format!("is not a class; they are 0 to {}", manifest.output.width - 1),
                    false => format!("is not a class; there are {}", named.join(", ")),
                },
            })?;
            for file in entries(class)?.into_iter().filter(|file| is_picture(file)) {
                files.push(file);
                labels.push(label);
            }
        }
        Ok(Self { path: path.to_owned(), pictures: Pictures::Files(files), labels })
    }

    fn read_arrays(path: &Path, labels: &Path) -> Result<Self, FitError> {
        let malformed =
            |path: &Path, message: String| FitError::Malformed { path: path.to_owned(), message };
        let images = Array::read(path)?;
        let shape = match images.shape[..] {
            [_, height, width] => [height, width, 1],
            [_, height, width, channels] => [height, width, channels],
            _ => {
                let message = format!("is {:?}, but images are [n, height, width]", images.shape);
                return Err(malformed(path, message));
            }
        };
        let shape = shape.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX));
        let classes = Array::read(labels)?;
        if classes.shape.len() != 1 || classes.shape[0] != images.shape[0] {
            let (found, count) = (&classes.shape, images.shape[0]);
            let message = format!("is {found:?}, but one label for each of {count} is needed");
            return Err(malformed(labels, message));
        }
        let labels = classes.values.iter().map(|label| usize::from(*label)).collect();
        let pictures = Pictures::Raw { bytes: images.values, shape };
        Ok(Self { path: path.to_owned(), pictures, labels })
    }
}

impl Array {
    /// Reads an IDX or NPY file of bytes, which may be compressed with gzip.
    fn read(path: &Path) -> Result<Self, FitError> {
        let wrap = |reason| FitError::File { path: path.to_owned(), reason };
        let mut bytes = fs::read(path).map_err(wrap)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = Vec::new();
            let decoder = flate2::read::GzDecoder::new(&bytes[..]);
            decoder.take(MAX_VALUES).read_to_end(&mut unpacked).map_err(wrap)?;
            bytes = unpacked;
        }
        let parsed = if bytes.starts_with(b"\x93NUMPY") { npy(&bytes) } else { idx(&bytes) };
        parsed.map_err(|message| FitError::Malformed { path: path.to_owned(), message })
    }
}

/// Parses IDX: two zeros, the element type, the number of axes, their extents, the elements.
fn idx(bytes: &[u8]) -> Result<Array, String> {
    let [0, 0, 8, axes @ 1..=4, rest @ ..] = bytes else {
        return Err("is neither NPY nor IDX of unsigned bytes".into());
    };
    let axes = usize::from(*axes);
    let Some((extents, values)) = rest.split_at_checked(4 * axes) else {
        return Err("ends inside its header".into());
    };
    let extents = extents.as_chunks::<4>().0.iter();
    let shape: Vec<u64> = extents.map(|extent| u64::from(u32::from_be_bytes(*extent))).collect();
    checked(shape, values.to_vec())
}

/// Parses NPY of unsigned bytes, or of 32-bit or 64-bit integers that fit into bytes.
fn npy(bytes: &[u8]) -> Result<Array, String> {
    let file = npyz::NpyFile::new(bytes).map_err(|e| format!("is not a valid NPY file: {e}"))?;
    if file.order() != npyz::Order::C {
        return Err("is in Fortran's order, but rows must come first".into());
    }
    let shape = file.shape().to_vec();
    let count: Option<u64> = shape.iter().try_fold(1_u64, |n, extent| n.checked_mul(*extent));
    if count.is_none_or(|count| count > MAX_VALUES) {
        return Err(format!("holds too many elements: {shape:?}"));
    }
    let type_name = file.dtype().descr();
    let values = match type_name.trim_matches('\'') {
        "|u1" => file.into_vec::<u8>().map_err(|e| e.to_string()),
        "<i8" => narrow(file.into_vec::<i64>()),
        "<i4" => narrow(file.into_vec::<i32>().map(|v| v.into_iter().map(i64::from).collect())),
        other => Err(format!("holds {other}, but |u1 is needed, or <i4 and <i8 for labels")),
    }?;
    checked(shape, values)
}

fn narrow(values: std::io::Result<Vec<i64>>) -> Result<Vec<u8>, String> {
    let values = values.map_err(|e| e.to_string())?;
    let byte = |value: i64| u8::try_from(value).map_err(|_| format!("{value} fits no byte"));
    values.into_iter().map(byte).collect()
}

fn checked(shape: Vec<u64>, values: Vec<u8>) -> Result<Array, String> {
    let count = shape.iter().try_fold(1_u64, |count, extent| count.checked_mul(*extent));
    if count != Some(values.len() as u64) {
        return Err(format!("holds {} bytes, but its shape is {shape:?}", values.len()));
    }
    Ok(Array { shape, values })
}

/// Returns the paths in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, FitError> {
    let wrap = |reason| FitError::File { path: folder.to_owned(), reason };
    let entries = fs::read_dir(folder).map_err(wrap)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(wrap)?;
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    matches!(extension.as_str(), "png" | "jpg" | "jpeg")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_read_with_their_shape() {
        let array = idx(&[0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]).expect("valid");
        assert_eq!((array.shape, array.values), (vec![1, 2], vec![7, 9]));
        let mut file = b"\x93NUMPY\x01\x00\x36\x00".to_vec();
        let header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}";
        file.truncate(8);
        file.extend(u16::try_from(header.len() + 1).expect("short").to_le_bytes());
        file.extend(header.as_bytes());
        file.push(b'\n');
        file.extend(5_i64.to_le_bytes());
        let array = npy(&file).expect("valid");
        assert_eq!((array.shape, array.values), (vec![1], vec![5]));
    }

    #[test]
    fn broken_arrays_are_refused_by_reason() {
        for (bytes, reason) in [
            (&[0, 0, 8, 1, 0, 0, 0, 3, 1][..], "holds 1 bytes"),
            (&[0, 0, 8, 3, 0, 0], "inside its header"),
            (&[0, 0, 13, 1], "neither NPY nor IDX"),
            (&[], "neither NPY nor IDX"),
            (&[0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255], "holds 0 bytes"),
        ] {
            let error = idx(bytes).err().expect(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
