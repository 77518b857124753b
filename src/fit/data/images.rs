//! Images for fitting and evaluation: IDX and NPY files, and folders of image files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::arrays::Array;
use crate::{
    family::{Manifest, Metric},
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

/// Images, with their classes if these are known.
#[derive(Debug, Clone)]
pub struct ImageSet {
    path: PathBuf,
    pictures: Pictures,
    /// Number of images.
    count: usize,
    labels: Option<Vec<usize>>,
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
    /// are read from the file beside it. A family whose qualities say how often plans agree needs
    /// no labels: the images may lie in the folder itself.
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
            let beside = PathBuf::from(beside);
            let has_labels = needs_labels(manifest) || (beside != path && beside.exists());
            let labels = labels.or_else(|| has_labels.then_some(&*beside));
            Self::read_arrays(path, labels, manifest.output.width)?
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
            if let Some(labels) = &mut self.labels {
                *labels = kept.iter().map(|index| labels[*index]).collect();
            }
        }
        self.count = self.count.min(limit);
        if let Some(labels) = &mut self.labels {
            labels.truncate(limit);
        }
    }

    /// Returns the file's or folder's name without its parent folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the entries of the folder that are not images and were left out.
    pub fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the class of each image, or `None` if the classes are not known.
    pub fn labels(&self) -> Option<&[usize]> {
        self.labels.as_deref()
    }

    /// Returns the SHA-256 of the images, or of their paths in the folder, and of their classes, in
    /// hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        match &self.pictures {
            Pictures::Raw { bytes, shape } => {
                let len = shape.iter().map(|extent| *extent as usize).product::<usize>();
                hash.update(&bytes[..bytes.len().min(len * self.count)]);
            }
            Pictures::Files(files) => {
                let inside = files.iter().filter_map(|file| file.strip_prefix(&self.path).ok());
                inside.for_each(|file| hash.update(file.as_os_str().as_encoded_bytes()));
            }
        }
        self.labels.iter().flatten().for_each(|label| hash.update(label.to_le_bytes()));
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
        let mut unlabelled = Vec::new();
        for class in entries(path)? {
            if !class.is_dir() {
                match READ.contains(&&*ending(&class)) {
                    true => unlabelled.push(class),
                    false => left_out.push(not_an_image(class)?),
                }
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
        let is_flat = files.is_empty() && !needs_labels(manifest);
        if let Some(first) = unlabelled.first().filter(|_| !is_flat) {
            let message = "is in no folder of a class".to_owned();
            return Err(FitError::Malformed { path: first.clone(), message });
        }
        let labels = unlabelled.is_empty().then_some(labels);
        files.append(&mut unlabelled);
        let (count, pictures) = (files.len(), Pictures::Files(files));
        Ok(Self { path: path.to_owned(), pictures, count, labels, left_out })
    }

    fn read_arrays(
        path: &Path,
        labels: Option<&Path>,
        num_classes: usize,
    ) -> Result<Self, FitError> {
        let malformed =
            |path: &Path, message: String| FitError::Malformed { path: path.to_owned(), message };
        let images = Array::read(path)?;
        let count = images.shape.first().copied().unwrap_or_default();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
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
        let labels = labels.map(|labels| read_labels(labels, count, num_classes)).transpose()?;
        let pictures = Pictures::Raw { bytes, shape };
        Ok(Self { path: path.to_owned(), pictures, count, labels, left_out: Vec::new() })
    }
}

/// Reads the classes of `count` images.
fn read_labels(path: &Path, count: usize, num_classes: usize) -> Result<Vec<usize>, FitError> {
    let malformed = |message: String| FitError::Malformed { path: path.to_owned(), message };
    let classes = Array::read(path)?;
    if classes.shape != [count as u64] {
        let found = &classes.shape;
        let message = format!("is {found:?}, but one label for each of {count} is needed");
        return Err(malformed(message));
    }
    let class = |label: i64| {
        let class = usize::try_from(label).ok().filter(|class| *class < num_classes);
        class.ok_or_else(|| {
            let message = format!("has the label {label}, but there are {num_classes} classes");
            malformed(message)
        })
    };
    classes.into_integers().into_iter().map(class).collect()
}

/// Returns whether the qualities of a family are about the classes of images.
fn needs_labels(manifest: &Manifest) -> bool {
    manifest.quality.metric == Metric::Accuracy
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
