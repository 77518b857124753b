//! Search for ONNX Runtime's shared library.

use std::path::{Path, PathBuf};

use super::RuntimeError;

/// Path at which set-up installs the library, below the working folder or above the executable.
const SETUP_LIBRARY: &str = ".tessera/lib/libonnxruntime.so";

/// Folders in which systems keep libraries.
const SYSTEM_FOLDERS: [&str; 5] = [
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
];

/// Finds ONNX Runtime's library. `given` (the flag) comes first, then `from_environment`
/// (`ORT_DYLIB_PATH`). Next come the set-up path at or above each of `folders` (the working folder,
/// the executable's) and the system's folders. An explicitly named file is used or refused, never
/// skipped.
///
/// # Errors
///
/// Fails when the named file does not exist, or no library is found.
pub fn find_library(
    given: Option<&Path>,
    from_environment: Option<&Path>,
    folders: &[PathBuf],
) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = given.or(from_environment.filter(|path| !path.as_os_str().is_empty())) {
        if path.is_file() {
            return Ok(path.to_owned());
        }
        return Err(RuntimeError::NoLibrary { tried: path.display().to_string() });
    }
    let in_setup = folders
        .iter()
        .flat_map(|folder| folder.ancestors())
        .map(|folder| folder.join(SETUP_LIBRARY));
    let in_system = SYSTEM_FOLDERS.iter().map(|folder| Path::new(folder).join("libonnxruntime.so"));
    in_setup.chain(in_system).find(|path| path.is_file()).ok_or_else(|| RuntimeError::NoLibrary {
        tried: format!("{SETUP_LIBRARY} and {}", SYSTEM_FOLDERS.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_goes_before_the_environment_and_the_folders() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let setup = folder.path().join(SETUP_LIBRARY);
        std::fs::create_dir_all(setup.parent().expect("a parent")).expect("created");
        let (flag, environment) = (folder.path().join("flag.so"), folder.path().join("env.so"));
        for path in [&setup, &flag, &environment] {
            std::fs::write(path, "").expect("written");
        }
        let folders = [folder.path().join("target/release")];
        let find = |flag, environment| find_library(flag, environment, &folders).expect("found");
        assert_eq!(find(Some(&flag), Some(&environment)), flag);
        assert_eq!(find(None, Some(&environment)), environment);
        assert_eq!(find(None, Some(Path::new(""))), setup);
        assert_eq!(find(None, None), setup);
    }

    #[test]
    fn a_named_library_that_is_not_there_is_an_error() {
        let error = find_library(Some(Path::new("/no/such.so")), None, &[]).expect_err("refused");
        assert!(error.to_string().contains("/no/such.so"));
        assert!(error.to_string().contains("make setup"));
    }
}
