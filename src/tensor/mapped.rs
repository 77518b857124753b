//! Read-only file mappings: the one module with `unsafe` code.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// A file mapped into memory, read-only.
#[derive(Debug, Clone)]
pub struct MappedFile {
    path: PathBuf,
    bytes: Bytes,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be opened or mapped.
    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature, and only done here")]
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the mapping is read-only and private to this process; pool files are replaced by
        // renaming, never truncated in place, which the pool's documentation demands.
        let mapping = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { path: path.to_owned(), bytes: Bytes::from_owner(mapping) })
    }

    /// Returns where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the content; slices of it share the mapping and copy nothing.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the lower-case hexadecimal SHA-256 of the content.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.bytes))
    }
}

/// Writes `digest` in lower-case hexadecimal.
fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_has_its_content_and_digest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").expect("written");
        let file = MappedFile::open(&path).expect("mapped");
        assert_eq!(&file.bytes()[..], b"abc");
        assert_eq!(
            file.sha256(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(MappedFile::open(folder.path()).is_err());
    }
}
