//! Labelled images for fitting and evaluation: IDX and NPY files, and folders of image files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::arrays::Array;
use crate::{
    family::Manifest,
    fit::error::FitError,
    input::{Pixels, decode_picture, raw_picture},
    tensor::{FileKind, hex, read_bytes},
};

/// Endings of image files that can be read.
const READ: [&str; 5] = ["png", "jpg", "jpeg", "jpe", "jfif"];

/// Endings of image files that cannot be read.
const NOT_READ: [&str; 17] = [
    "webp", "bmp", "dib", "tif", "tiff", "gif", "avif", "heic", "heif", "jp2", "jxl", "ppm", "pgm",
    "pbm", "pnm", "ico", "tga",
];

/// Images with their classes.
#[derive(Debug, Clone)]
pub struct ImageSet {
    path: PathBuf,
    pictures: Pictures,
    labels: Vec<usize>,
    /// Entries of the folder that are not images.
    left_out: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
enum Pictures {
    /// Bytes `[images, height, width, channels]`.
    Raw { bytes: Vec<u8>, shape: [u32; 3] },
    /// Paths of image files.
    Files(Vec<PathBuf>),
}

impl ImageSet {
    /// Reads images from a folder of `class/name.png` or `.jpg`, or from an IDX or NPY file of
    /// bytes. Entries of the folder that are not images are left out.
    ///
    /// `labels` is the file of labels for an IDX or NPY file. By default, the labels of an IDX file
    /// are read from the file beside it.
    ///
    /// # Errors
    ///
    /// Fails when files cannot be read, have another form or contradict each other. Fails on image
    /// files of other formats, and when a class is missing in the family.
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
            Self::read_arrays(path, &labels, manifest.output.width)?
        };
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

    /// Returns the entries of the folder that are not images and were left out.
    pub fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    /// Returns the class of each image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Returns the SHA-256 of the images, or of their paths in the folder, and of their classes, in
    /// hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        match &self.pictures {
            Pictures::Raw { bytes, shape } => {
                let len = shape.iter().map(|extent| *extent as usize).product::<usize>();
                hash.update(&bytes[..bytes.len().min(len * self.labels.len())]);
            }
            Pictures::Files(files) => {
                let inside = files.iter().filter_map(|file| file.strip_prefix(&self.path).ok());
                inside.for_each(|file| hash.update(file.as_os_str().as_encoded_bytes()));
            }
        }
        self.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        hex(&hash.finalize())
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
                        let message = format!("image {position} is not there");
                        FitError::Malformed { path: self.path.clone(), message }
                    })?
                }
                Pictures::Files(files) => {
                    let path = files[*position].clone();
                    let bytes = read_bytes(&path, FileKind::Image)
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
        let (mut files, mut labels, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for class in entries(path)? {
            if !class.is_dir() {
                if READ.contains(&&*ending(&class)) {
                    let message = "is in no folder of a class".to_owned();
                    return Err(FitError::Malformed { path: class, message });
                }
                left_out.push(not_an_image(class)?);
                continue;
            }
            let label = class_of(&class, manifest)?;
            for file in entries(&class)? {
                if READ.contains(&&*ending(&file)) {
                    files.push(file);
                    labels.push(label);
                } else {
                    left_out.push(not_an_image(file)?);
                }
            }
        }
        Ok(Self { path: path.to_owned(), pictures: Pictures::Files(files), labels, left_out })
    }

    fn read_arrays(path: &Path, labels: &Path, num_classes: usize) -> Result<Self, FitError> {
        let malformed =
            |path: &Path, message: String| FitError::Malformed { path: path.to_owned(), message };
        let images = Array::read(path)?;
        let count = images.shape.first().copied().unwrap_or_default();
        let shape = match images.shape[..] {
            [_, height @ (1..), width @ (1..)] => [height, width, 1],
            [_, height @ (1..), width @ (1..), channels @ (1 | 3)] => [height, width, channels],
            _ => {
                let expected = "[n, height, width], or that and 1 or 3 channels";
                let message = format!("is {:?}, but images are {expected}", images.shape);
                return Err(malformed(path, message));
            }
        };
        let shape = shape.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX));
        let not_byte = |value| malformed(path, format!("holds {value}, but images are of bytes"));
        let bytes = images.into_bytes().map_err(not_byte)?;
        let classes = Array::read(labels)?;
        if classes.shape != [count] {
            let found = &classes.shape;
            let message = format!("is {found:?}, but one label for each of {count} is needed");
            return Err(malformed(labels, message));
        }
        let class = |label: i64| {
            let class = usize::try_from(label).ok().filter(|class| *class < num_classes);
            class.ok_or_else(|| {
                let message = format!("has the label {label}, but there are {num_classes} classes");
                malformed(labels, message)
            })
        };
        let labels = classes.into_integers().into_iter().map(class).collect::<Result<_, _>>()?;
        let pictures = Pictures::Raw { bytes, shape };
        Ok(Self { path: path.to_owned(), pictures, labels, left_out: Vec::new() })
    }
}

/// Returns the class of the images in `folder`, which its name says.
fn class_of(folder: &Path, manifest: &Manifest) -> Result<usize, FitError> {
    let (named, width) = (&manifest.output.labels, manifest.output.width);
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let label = match named.is_empty() {
        // Without names of classes, a folder is called by its class's number.
        true => name.parse().ok().filter(|number| *number < width),
        false => named.iter().position(|label| *label == name),
    };
    label.ok_or_else(|| FitError::Malformed {
        path: folder.to_owned(),
        message: match named.is_empty() {
            true => format!("is not a class; they are 0 to {}", width - 1),
            false => format!("is not a class; there are {}", named.join(", ")),
        },
    })
}

/// Returns `path`, which leads to something other than an image.
///
/// # Errors
///
/// Fails on an image of a format that cannot be read.
fn not_an_image(path: PathBuf) -> Result<PathBuf, FitError> {
    if NOT_READ.contains(&&*ending(&path)) {
        let message = "is an image of a format that is not supported; PNG and JPEG are".to_owned();
        return Err(FitError::Malformed { path, message });
    }
    Ok(path)
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

/// Returns a file's ending in lower case, without its dot.
fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
