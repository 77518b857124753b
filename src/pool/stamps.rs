//! Detecting changes of loaded files without reading them again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::family::{FITS_FOLDER, name_without_digest};

/// Maximum number of files in a family's folder.
const MAX_FILES: usize = 10_000;

/// Prefix of the names of files that are being written.
const TEMPORARY: &str = ".writing-";

/// Stamps of the files of a folder at one time. A file's stamp changes when the file changes or is
/// replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps {
    files: BTreeMap<PathBuf, Stamp>,
    /// Stamps of fitted files with a digest in their names.
    fitted: BTreeMap<PathBuf, Stamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Time of the last change of the content, in seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamps {
    /// Takes the stamps of all files below `folder`.
    ///
    /// # Errors
    ///
    /// Fails when a folder cannot be read, or there are too many files.
    pub fn take(folder: &Path) -> io::Result<Self> {
        let (mut stamps, mut folders) = (Self::default(), vec![folder.to_owned()]);
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with(TEMPORARY) {
                    continue;
                }
                let location = format!("{FITS_FOLDER}/{name}");
                let is_fitted =
                    path == folder.join(&location) && name_without_digest(&location).is_some();
                let Self { files, fitted } = &mut stamps;
                let stamps = if is_fitted { fitted } else { files };
                // A link counts as its target; a link without a target is not a file.
                match fs::metadata(&path) {
                    Ok(found) if found.is_dir() => folders.push(path),
                    Ok(found) => drop(stamps.insert(path, Stamp::of(&found))),
                    Err(_) => {}
                }
            }
            if stamps.files.len() + stamps.fitted.len() + folders.len() > MAX_FILES {
                return Err(io::Error::other(format!("there are over {MAX_FILES} files")));
            }
        }
        Ok(stamps)
    }

    /// Returns whether both stamps are of the same version of a family. Fitted files with a digest
    /// in their names are not compared. They are in use only when `fits.json` names them, and that
    /// file is compared.
    pub fn is_same_version(&self, other: &Self) -> bool {
        self.files == other.files
    }

    fn known(&self, path: &Path) -> Option<&Stamp> {
        self.files.get(path).or_else(|| self.fitted.get(path))
    }

    /// Returns whether the file at `path` has not changed since the stamps were taken.
    pub fn is_unchanged(&self, path: &Path) -> bool {
        let found = fs::metadata(path).ok().map(|found| Stamp::of(&found));
        found.is_some() && found == self.known(path).copied()
    }
}

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_removed_has_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("below");
        fs::create_dir(&below).expect("created");
        let [same, written, replaced, removed] =
            ["same", "written", "replaced", "removed"].map(|name| below.join(name));
        for path in [&same, &written, &replaced, &removed] {
            fs::write(path, "before").expect("written");
        }
        let stamps = Stamps::take(folder.path()).expect("read");
        fs::write(&written, "after that").expect("written");
        fs::write(below.join("new"), "before").expect("written");
        fs::rename(below.join("new"), &replaced).expect("renamed");
        fs::remove_file(&removed).expect("removed");
        assert!(stamps.is_unchanged(&same));
        for path in [&written, &replaced, &removed, &below.join("new")] {
            assert!(!stamps.is_unchanged(path), "{}", path.display());
        }
        assert_ne!(Stamps::take(folder.path()).expect("read"), stamps);
    }

    #[test]
    fn what_a_fit_writes_counts_once_it_is_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let fits = folder.path().join(FITS_FOLDER);
        fs::create_dir(&fits).expect("created");
        let record = folder.path().join("fits.json");
        fs::write(&record, "before").expect("written");
        let stamps = Stamps::take(folder.path()).expect("read");
        let fitted = fits.join("a-b.0123456789abcdef.safetensors");
        fs::write(&fitted, "new").expect("written");
        fs::write(fits.join(".writing-tessera-a"), "half").expect("written");
        let staged = Stamps::take(folder.path()).expect("read");
        assert!(staged.is_same_version(&stamps) && staged != stamps);
        assert!(staged.is_unchanged(&fitted) && !stamps.is_unchanged(&fitted));
        fs::write(&record, "after that").expect("written");
        assert!(!Stamps::take(folder.path()).expect("read").is_same_version(&stamps));
        fs::write(&fitted, "changed").expect("written");
        assert!(!staged.is_unchanged(&fitted));
    }
}
