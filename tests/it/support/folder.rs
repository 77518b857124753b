//! A family's folder that a test writes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tessera::{arch::ArchError, assembly::Family};

/// Returns the names of what is in the folder `path`, in order.
pub(crate) fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> =
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A family of one or more anchors in a temporary pool.
pub(crate) struct Folder {
    name: &'static str,
    folder: TempDir,
    digests: BTreeMap<String, String>,
}

impl Folder {
    /// Creates an empty folder of the family `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join(name)).expect("created");
        Self { name, folder, digests: BTreeMap::new() }
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    /// Writes the file `name`.
    pub(crate) fn write(&mut self, name: &str, content: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, content).expect("written");
        let digest = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        self.digests.insert(name.into(), digest);
    }

    /// Writes the manifest, in which `SHA256 file` stands for a digest, and loads the family.
    pub(crate) fn load(&self, manifest: &str) -> Family {
        self.try_load(manifest).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Writes the manifest like [`load`](Self::load), and loads the family.
    ///
    /// # Errors
    ///
    /// Fails when the family does not load.
    pub(crate) fn try_load(&self, manifest: &str) -> Result<Family, ArchError> {
        let mut text = manifest.to_owned();
        for (name, digest) in &self.digests {
            text = text.replace(&format!("SHA256 {name}"), digest);
        }
        fs::write(self.path().join("family.toml"), text).expect("written");
        Family::load(&self.path())
    }
}
