//! Functions that open regular files by name. Named pipes and devices are refused, because reading
//! them may block.

use std::{
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

/// Reads the regular file at `path`.
///
/// # Errors
///
/// Fails like [`open_file`].
pub fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the regular file at `path` as UTF-8.
///
/// # Errors
///
/// Fails like [`open_file`], and on bytes that are not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_file(path)?.read_to_string(&mut text)?;
    Ok(text)
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
        assert_eq!(read_text(&path).expect("read"), "äbc");
        std::fs::write(&path, b"\xff\xfe").expect("written");
        assert_eq!(read_text(&path).expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_folder_a_named_pipe_and_a_device_are_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        for path in [folder.path(), &pipe, Path::new("/dev/null")] {
            let error = read_text(path).expect_err("refused");
            assert_eq!(error.to_string(), "not a regular file", "{}", path.display());
        }
    }
}
