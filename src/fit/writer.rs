//! The one writer of a family's folder. What it adds is in use once it has committed, all of it or
//! nothing; a run that was killed leaves the family as it was, and the next run clears up.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::disk::{Disk, FileSystem, lock, place, sweep};
use crate::{
    arch::{FitRecords, FittedFile, PoolError, chain},
    family::{FITS_FOLDER, MANIFEST_FILE, name_with_digest, name_without_digest},
};

/// Start of the names of files that are being written, by this version and those before it.
const TEMPORARY: &str = ".writing-";

/// A family's folder, in which nobody else writes.
#[derive(Debug)]
pub struct FamilyWriter {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    /// Files that are not in use yet.
    staged: Vec<PathBuf>,
    _lock: Option<File>,
}

/// A fitted file that is written, but not in use yet.
#[derive(Debug, Clone)]
pub(super) struct Staged {
    pub(super) file: String,
    pub(super) sha256: String,
}

impl FamilyWriter {
    /// Begins to write in `folder`, clearing up what a killed run has left there.
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be opened, and when another process writes in it.
    pub fn begin(folder: &Path) -> Result<Self, PoolError> {
        Self::begin_on(Arc::new(FileSystem), folder)
    }

    /// Begins like [`begin`](Self::begin), but changes files by `disk`.
    ///
    /// # Errors
    ///
    /// Fails like [`begin`](Self::begin).
    pub fn begin_on(disk: Arc<dyn Disk>, folder: &Path) -> Result<Self, PoolError> {
        let wrap = |source| PoolError::File { path: folder.to_owned(), source };
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

    /// Returns the records of the fitted files that are whole. What is missing or broken is told in
    /// the log, since it is fitted anew.
    pub fn whole_records(&self) -> FitRecords {
        let mut records = FitRecords::read(&self.folder).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::warn!(error, "the record of fits is broken; everything is fitted anew");
            FitRecords::default()
        });
        let told = |error: PoolError| {
            let error = chain(&error);
            tracing::warn!(error, "a fitted file is broken; it is fitted anew");
        };
        records.retain(|_, file| file.fault(&self.folder).map(told).is_none());
        records
    }

    /// Writes a fitted file with the plain name `name`; it is in use when records of it are
    /// committed.
    pub(super) fn stage(&mut self, name: &str, content: &[u8]) -> Result<Staged, PoolError> {
        let digest = Sha256::digest(content);
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = name_with_digest(name, &sha256);
        let path = self.folder.join(&file);
        let is_there =
            FittedFile { location: &file, sha256: &sha256 }.fault(&self.folder).is_none();
        if !is_there {
            if !path.exists() {
                self.staged.push(path.clone());
            }
            place(&*self.disk, &path, content)
                .map_err(|source| PoolError::File { path, source })?;
        }
        Ok(Staged { file, sha256 })
    }

    /// Puts `records` in use. What was in use before stays until the next commit, for servers that
    /// have not loaded the family again.
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

    /// Replaces a file of the family, or adds it.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written; nothing is changed then.
    pub fn replace(&self, file: &Path, content: &[u8]) -> Result<(), PoolError> {
        let path = self.folder.join(file);
        place(&*self.disk, &path, content).map_err(|source| PoolError::File { path, source })
    }

    /// Removes fitted files that are neither in use nor were before the last commit.
    fn sweep_fits(&self, records: &FitRecords) {
        let manifest = fs::read_to_string(self.folder.join(MANIFEST_FILE)).unwrap_or_default();
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
                // What cannot be removed is in nobody's way.
                drop(self.disk.remove(&self.folder.join(&location)));
            }
        }
    }
}

/// What was not committed is removed.
impl Drop for FamilyWriter {
    fn drop(&mut self) {
        for path in &self.staged {
            drop(self.disk.remove(path));
        }
    }
}
