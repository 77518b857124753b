//! Whether files are still those that were loaded, without reading them again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The most files of a family's folder that are looked at.
const MAX_FILES: usize = 10_000;

/// What each file of a folder was when it was looked at: changing or replacing one changes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps(BTreeMap<PathBuf, Stamp>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// When its content changed, in seconds and nanoseconds.
    modified: (i64, i64),
}

impl Stamps {
    /// Looks at every file below `folder`.
    ///
    /// # Errors
    ///
    /// Fails when a folder cannot be read.
    pub fn take(folder: &Path) -> io::Result<Self> {
        let (mut stamps, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next)? {
                let path = entry?.path();
                // What a link leads to counts; one that leads nowhere is no file.
                match fs::metadata(&path) {
                    Ok(found) if found.is_dir() => folders.push(path),
                    Ok(found) => drop(stamps.insert(path, Stamp::of(&found))),
                    Err(_) => {}
                }
            }
            if stamps.len() + folders.len() > MAX_FILES {
                return Err(io::Error::other(format!("there are over {MAX_FILES} files")));
            }
        }
        Ok(Self(stamps))
    }

    /// Tells whether the file at `path` is the one that was looked at.
    pub fn is_unchanged(&self, path: &Path) -> bool {
        let found = fs::metadata(path).ok().map(|found| Stamp::of(&found));
        found.is_some() && found == self.0.get(path).copied()
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
}
