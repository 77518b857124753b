//! Changing files in single steps.
//!
//! A file is written under a temporary name beside its place and then renamed. It is locked while
//! it is being written. A temporary file without a lock was therefore left by a process that has
//! ended.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::tensor::open_file;

/// Prefix of the names of files that are being written.
pub(crate) const TEMPORARY: &str = ".writing-tessera-";

/// Number of tries to write a file that another process removes as a leftover.
const MAX_TRIES: usize = 3;

/// Steps that make up every change to files; each happens or does not.
pub trait Disk: std::fmt::Debug + Send + Sync {
    /// Writes `content` into the new file at `path`, and waits until it is on disk.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written; a part of it may be left.
    fn fill(&self, file: &mut File, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Renames the file or folder at `from` to `to`, and waits until the change is on disk.
    ///
    /// # Errors
    ///
    /// Fails when the file system refuses it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the file or folder at `path`.
    ///
    /// # Errors
    ///
    /// Fails when the file system refuses it.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// Steps on the real file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn fill(&self, file: &mut File, _path: &Path, content: &[u8]) -> io::Result<()> {
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        // Some file systems cannot sync a folder.
        drop(sync(folder_of(to)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }
}

/// Writes `content` to a file beside `path` and renames it. Creates the folder if it is missing.
pub(crate) fn place(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    let mut last = None;
    for _ in 0..MAX_TRIES {
        let (mut file, temporary) = new_file(folder)?;
        let placed =
            disk.fill(&mut file, &temporary, content).and_then(|()| disk.rename(&temporary, path));
        match placed {
            Ok(()) => return Ok(()),
            // Another process may have removed the file as a leftover before it was locked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = Some(error),
            Err(error) => {
                drop(disk.remove(&temporary));
                return Err(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Creates an empty file that is locked as long as it is held.
fn new_file(folder: &Path) -> io::Result<(File, PathBuf)> {
    let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    let (file, path) = file.keep().map_err(|e| e.error)?;
    // On a file system without locks, no process removes the file as a leftover.
    drop(lock(&file));
    Ok((file, path))
}

/// Locks a file or folder until it is closed. Returns whether it was free.
///
/// # Errors
///
/// Fails on file systems without locks.
pub(crate) fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Removes the files and folders of `folder` whose names start with `prefix` and that no process
/// holds.
pub(crate) fn sweep(disk: &dyn Disk, folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(prefix) {
            continue;
        }
        let held = if path.is_dir() { File::open(&path) } else { open_file(&path) };
        if held.is_ok_and(|held| lock(&held).unwrap_or(false)) {
            // A file that cannot be removed does no harm.
            drop(disk.remove(&path));
        }
    }
}

/// Waits until the content of the file or folder at `path` is on disk.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Returns the folder of the file at `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
