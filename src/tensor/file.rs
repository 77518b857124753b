//! Functions that open regular files by name. Named pipes and devices are refused, because reading
//! them may block.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Opens the regular file at `path` for reading.
///
/// # Errors
///
/// Fails when `path` does not exist or may not be read. Fails when it is a folder, a named pipe or
/// a device.
pub fn open_file(path: &Path) -> io::Result<File> {
    // Without `O_NONBLOCK`, opening a named pipe blocks until another process writes to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Kind of a file that is read whole. It says how many bytes such a file may have, since parsed
/// JSON takes up to thirty times as much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Configuration of a network or of its inputs. That of 22,000 classes has 2 MB.
    Config,
    /// Manifest of a family, with the labels of its classes.
    Manifest,
    /// `tokenizer.json`. That of 256,000 words has 35 MB.
    Tokenizer,
    /// Index of the shards of a checkpoint. That of 140,000 tensors has 13 MB.
    ShardIndex,
    /// Records of fits, qualities and measured costs. Tessera writes them.
    Records,
    /// Options of the command line.
    Options,
    /// Clients with their tokens and limits, 200 bytes each.
    Clients,
    /// Certificates or a private key in PEM. All known authorities have 230 KB.
    Pem,
    /// Labels of classes, one a line.
    Labels,
    /// Arrival times of requests, one a line.
    Trace,
    /// Image of a data set, packed or not.
    Image,
    /// Data set for fitting and evaluation.
    Examples,
}

impl FileKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Config,
        Self::Manifest,
        Self::Tokenizer,
        Self::ShardIndex,
        Self::Records,
        Self::Options,
        Self::Clients,
        Self::Pem,
        Self::Labels,
        Self::Trace,
        Self::Image,
        Self::Examples,
    ];

    /// Returns the most bytes of a file of this kind.
    pub const fn max_bytes(self) -> u64 {
        match self {
            Self::Options | Self::Manifest => 1 << 20,
            Self::Config | Self::Clients | Self::Pem | Self::Labels => 4 << 20,
            Self::ShardIndex => 32 << 20,
            Self::Tokenizer | Self::Records => 64 << 20,
            Self::Trace | Self::Image => 256 << 20,
            Self::Examples => 8 << 30,
        }
    }
}

/// Name of the kind for errors, with its article.
impl fmt::Display for FileKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Config => "a configuration",
            Self::Manifest => "a manifest",
            Self::Tokenizer => "a tokenizer",
            Self::ShardIndex => "an index of shards",
            Self::Records => "a file of records",
            Self::Options => "an options file",
            Self::Clients => "a file of clients",
            Self::Pem => "a PEM file",
            Self::Labels => "a file of labels",
            Self::Trace => "a trace",
            Self::Image => "an image",
            Self::Examples => "a data set",
        })
    }
}

/// Reads the regular file at `path`.
///
/// # Errors
///
/// Fails like [`open_file`], and when the file has more bytes than its kind may have. Nothing of
/// such a file is read.
pub fn read_bytes(path: &Path, kind: FileKind) -> io::Result<Vec<u8>> {
    let file = open_file(path)?;
    let size = file.metadata()?.len();
    let max = kind.max_bytes();
    if size > max {
        return Err(too_large(kind, size));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // The file may grow while it is read.
    let size = file.take(max + 1).read_to_end(&mut bytes)? as u64;
    if size > max { Err(too_large(kind, size)) } else { Ok(bytes) }
}

/// Reads the regular file at `path` as UTF-8.
///
/// # Errors
///
/// Fails like [`read_bytes`], and on bytes that are not UTF-8.
pub fn read_text(path: &Path, kind: FileKind) -> io::Result<String> {
    String::from_utf8(read_bytes(path, kind)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn too_large(kind: FileKind, size: u64) -> io::Error {
    let max = kind.max_bytes();
    let message = format!("it has {size} bytes, but {kind} has at most {max}");
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_regular_file_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("text");
        std::fs::write(&path, "äbc").expect("written");
        assert_eq!(read_text(&path, FileKind::Config).expect("read"), "äbc");
        std::fs::write(&path, b"\xff\xfe").expect("written");
        let error = read_text(&path, FileKind::Config).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_larger_than_its_kind_is_refused_with_both_sizes() {
        let folder = tempfile::tempdir().expect("a folder");
        for kind in FileKind::ALL {
            let path = folder.path().join("file");
            let max = kind.max_bytes();
            File::create(&path).expect("created").set_len(max + 1).expect("made longer");
            let error = read_bytes(&path, kind).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{kind}");
            let expected = format!("it has {} bytes, but {kind} has at most {max}", max + 1);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_file_as_large_as_its_kind_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let max = FileKind::Options.max_bytes();
        File::create(&path).expect("created").set_len(max).expect("made longer");
        assert_eq!(read_bytes(&path, FileKind::Options).expect("read").len() as u64, max);
    }

    #[test]
    fn a_file_that_says_no_size_is_read_to_its_end() {
        let own = Path::new("/proc/self/status");
        assert!(read_text(own, FileKind::Config).expect("read").contains("VmRSS"));
    }

    #[test]
    fn a_folder_a_named_pipe_and_a_device_are_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        for path in [folder.path(), &pipe, Path::new("/dev/null")] {
            let error = read_text(path, FileKind::Config).expect_err("refused");
            assert_eq!(error.to_string(), "not a regular file", "{}", path.display());
        }
    }
}
