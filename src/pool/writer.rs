//! Exclusive writer of a family's folder.
//!
//! Added files take effect when the writer commits, all of them or none. A killed run leaves the
//! family as it was, and the next run removes its leftovers.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    disk::{Disk, FileSystem, lock, place, sweep},
    error::PoolError,
    records::{FitRecords, FittedFile},
};
use crate::{
    family::{FITS_FOLDER, MANIFEST_FILE, name_with_digest, name_without_digest},
    tensor::{FileKind, chain, hex, read_text},
};

/// Prefix of the names of files that are being written, by this and earlier versions.
const TEMPORARY: &str = ".writing-";

/// Exclusive writer of a family's folder.
#[derive(Debug)]
pub struct FamilyWriter {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    /// Paths of files that are not yet in use.
    staged: Vec<PathBuf>,
    _lock: Option<File>,
}

/// Fitted file that is written but not yet in use.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    pub(crate) file: String,
    pub(crate) sha256: String,
}

impl FamilyWriter {
    /// Opens `folder` for writing, and removes the leftovers of a killed run.
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be opened, and when another process writes in it.
    pub fn begin(folder: &Path) -> Result<Self, PoolError> {
        Self::begin_on(Arc::new(FileSystem), folder)
    }

    /// Opens `folder` like [`begin`](Self::begin), but changes files through `disk`.
    ///
    /// # Errors
    ///
    /// Fails like [`begin`](Self::begin).
    pub fn begin_on(disk: Arc<dyn Disk>, folder: &Path) -> Result<Self, PoolError> {
        let wrap = |reason| PoolError::File { path: folder.to_owned(), reason };
        let held = File::open(folder).map_err(wrap)?;
        let lock = match lock(&held) {
            Ok(true) => Some(held),
            Ok(false) => return Err(PoolError::Locked { folder: folder.to_owned() }),
            Err(error) => {
                let folder = folder.display();
                tracing::warn!(%folder, %error, "cannot be locked; let no other run write there");
                None
            }
        };
        let writer = Self { folder: folder.to_owned(), disk, staged: Vec::new(), _lock: lock };
        sweep(&*writer.disk, folder, TEMPORARY);
        sweep(&*writer.disk, &folder.join(FITS_FOLDER), TEMPORARY);
        if let Ok(records) = FitRecords::read(folder) {
            writer.sweep_fits(&records);
        }
        Ok(writer)
    }

    /// Returns the family's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the records of the fitted files that are whole. Broken files are logged, because
    /// they are fitted again.
    pub fn whole_records(&self) -> FitRecords {
        let mut records = FitRecords::read(&self.folder).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::warn!(error, "the record of fits is broken; everything is fitted again");
            FitRecords::default()
        });
        let report = |error: PoolError| {
            let error = chain(&error);
            tracing::warn!(error, "a fitted file is broken; it is fitted again");
        };
        records.retain(|_, file| file.fault(&self.folder).map(report).is_none());
        records
    }

    /// Writes a fitted file with the plain name `name`; it is in use when records of it are
    /// committed.
    pub(crate) fn stage(&mut self, name: &str, content: &[u8]) -> Result<Staged, PoolError> {
        let digest = Sha256::digest(content);
        let sha256 = hex(&digest);
        let file = name_with_digest(name, &sha256);
        let path = self.folder.join(&file);
        let is_there =
            FittedFile { location: &file, sha256: &sha256 }.fault(&self.folder).is_none();
        if !is_there {
            if !path.exists() {
                self.staged.push(path.clone());
            }
            place(&*self.disk, &path, content)
                .map_err(|reason| PoolError::File { path, reason })?;
        }
        Ok(Staged { file, sha256 })
    }

    /// Puts `records` in use. The files used before stay until the next commit, for servers that
    /// have not yet reloaded the family.
    ///
    /// # Errors
    ///
    /// Fails when the record cannot be written; nothing is changed then.
    pub fn commit(&mut self, mut records: FitRecords) -> Result<(), PoolError> {
        let owned = |file: FittedFile<'_>| file.location.to_owned();
        let mut before = FitRecords::read(&self.folder).unwrap_or_default();
        before.retain(|_, file| !records.files().any(|new| new.location == file.location));
        let is_there = |location: &String| self.folder.join(location).is_file();
        records.superseded = before.files().map(owned).filter(is_there).collect();
        let (file, text) = records.to_file();
        self.replace(Path::new(file), text.as_bytes())?;
        self.staged.clear();
        self.sweep_fits(&records);
        Ok(())
    }

    /// Replaces or adds a file of the family.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written; nothing is changed then.
    pub fn replace(&self, file: &Path, content: &[u8]) -> Result<(), PoolError> {
        let path = self.folder.join(file);
        place(&*self.disk, &path, content).map_err(|reason| PoolError::File { path, reason })
    }

    /// Removes fitted files that are not in use and were not in use before the last commit.
    fn sweep_fits(&self, records: &FitRecords) {
        let manifest = self.folder.join(MANIFEST_FILE);
        // Without the manifest it is not known what is in use.
        let Ok(manifest) = read_text(&manifest, FileKind::Manifest) else { return };
        let is_replaced = |name: &String| {
            let maps = records.maps.get(name).map(|record| record.file.is_some());
            maps.or(records.experts.get(name).map(|record| record.file.is_some())) == Some(true)
        };
        let entries = fs::read_dir(self.folder.join(FITS_FOLDER)).into_iter().flatten();
        for name in entries.filter_map(Result::ok).map(|entry| entry.file_name()) {
            let location = format!("{FITS_FOLDER}/{}", name.to_string_lossy());
            let is_ours = name_without_digest(&location).is_some() || is_replaced(&location);
            let is_used = records.files().any(|file| file.location == location)
                || records.superseded.contains(&location)
                || manifest.contains(&location);
            if is_ours && !is_used {
                // A file that cannot be removed does no harm.
                drop(self.disk.remove(&self.folder.join(&location)));
            }
        }
    }
}

/// Removes the files that were not committed.
impl Drop for FamilyWriter {
    fn drop(&mut self) {
        for path in &self.staged {
            drop(self.disk.remove(path));
        }
    }
}
