//! The runtime on this machine.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use super::AppError;
use crate::{
    offer::MachineKey,
    runtime::{Runtime, RuntimeConfig, calibrate, find_library},
};

/// Settings of the runtime.
#[derive(Debug, Clone, Default)]
pub struct MachineConfig {
    /// ONNX Runtime's library, or `None` to look for it.
    pub library: Option<PathBuf>,
    /// Number of threads for inference; 0 for one a core.
    pub num_threads: usize,
    /// Whether idle inference threads spin.
    pub spin: bool,
    /// Memory in bytes that the process may hold.
    pub memory_limit: Option<u64>,
    /// Folder of profiles, or `None` for the user's cache folder.
    pub cache: Option<PathBuf>,
}

/// The runtime, and the key that identifies this machine.
#[derive(Debug)]
pub struct Machine {
    pub(super) runtime: Runtime,
    pub(super) key: MachineKey,
    /// Folder of profiles; `None` if there is no folder for them.
    pub(super) cache: Option<PathBuf>,
    /// Time of the calibration's work, once it was measured.
    calibration: OnceLock<Duration>,
}

impl Machine {
    /// Starts the runtime. A process has one.
    ///
    /// # Errors
    ///
    /// Fails when the library is missing or does not load.
    pub fn start(config: MachineConfig) -> Result<Self, AppError> {
        let MachineConfig { library, num_threads, spin, memory_limit, cache } = config;
        let from_environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let executable = std::env::current_exe().unwrap_or_default();
        let folders = [std::env::current_dir().unwrap_or_default(), executable];
        let library = find_library(library.as_deref(), from_environment.as_deref(), &folders)?;
        let key = MachineKey::of_this_machine(&library, num_threads, spin)?;
        let config = RuntimeConfig { library, num_threads: key.num_threads, spin, memory_limit };
        let runtime = Runtime::start(&config)?;
        Ok(Self::new(runtime, key, cache.or_else(default_cache)))
    }

    /// Creates a machine around a runtime that has started.
    pub fn new(runtime: Runtime, key: MachineKey, cache: Option<PathBuf>) -> Self {
        Self { runtime, key, cache, calibration: OnceLock::new() }
    }

    /// Returns the time of the calibration's work on this machine, which is measured once.
    pub(super) fn calibration(&self) -> Result<Duration, AppError> {
        if let Some(known) = self.calibration.get() {
            return Ok(*known);
        }
        let measured = calibrate(&self.runtime)?;
        Ok(*self.calibration.get_or_init(|| measured))
    }

    /// Returns the runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Returns the key that identifies this machine among profiles.
    pub fn key(&self) -> &MachineKey {
        &self.key
    }

    /// Returns the folder of profiles, or None if there is no folder for them.
    pub fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }
}

fn default_cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(base.join("tessera"))
}
