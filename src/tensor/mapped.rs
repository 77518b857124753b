//! Read-only file mappings, with the `unsafe` code that they need.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};
use sha2::{Digest, Sha256};

use super::{hex::hex, open_file};

/// A file mapped into memory, read-only.
#[derive(Debug, Clone)]
pub struct MappedFile {
    path: PathBuf,
    mapping: Arc<Mmap>,
    bytes: Bytes,
}

/// Shared ownership of a mapping, which [`Bytes`] keep alive.
struct Shared(Arc<Mmap>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Size of the parts in which a digest is computed, in bytes.
const DIGEST_BYTES: usize = 4 << 20;

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be opened or mapped.
    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature, and only done here")]
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open_file(path)?;
        // SAFETY: the mapping is read-only and private to this process. Pool files are replaced by
        // renaming and never truncated in place, as the pool's documentation demands.
        let mapping = Arc::new(unsafe { Mmap::map(&file)? });
        let bytes = Bytes::from_owner(Shared(mapping.clone()));
        Ok(Self { path: path.to_owned(), mapping, bytes })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the content. Slices of it share the mapping and copy nothing.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the SHA-256 of the content in lower-case hexadecimal. Only a part of the content is
    /// in memory at a time.
    #[expect(unsafe_code, reason = "only this says that a part of a mapping is not needed")]
    pub fn sha256(&self) -> String {
        let mut digest = Sha256::new();
        for (index, part) in self.mapping.chunks(DIGEST_BYTES).enumerate() {
            digest.update(part);
            let advice = UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is read-only and of a file, so a later read gets the same bytes.
            let advised = unsafe {
                self.mapping.unchecked_advise_range(advice, index * DIGEST_BYTES, part.len())
            };
            // If the advice fails, the pages stay until the system needs them.
            drop(advised);
        }
        hex(&digest.finalize())
    }
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
    fn a_file_larger_than_a_part_has_the_digest_of_its_bytes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("large");
        let content: Vec<u8> =
            (0..DIGEST_BYTES + 5_000).map(|index| index.to_le_bytes()[1]).collect();
        std::fs::write(&path, &content).expect("written");
        let file = MappedFile::open(&path).expect("mapped");
        assert_eq!(file.sha256(), hex(&Sha256::digest(&content)));
        assert_eq!(file.bytes()[..], content[..]);
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(MappedFile::open(folder.path()).is_err());
    }
}
