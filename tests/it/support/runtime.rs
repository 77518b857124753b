//! The repository's folder and the process's runtime.

use std::{path::PathBuf, sync::OnceLock};

use tessera::runtime::{Runtime, RuntimeConfig, find_library};

/// Returns the repository's folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the process's runtime.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
            let library = find_library(None, environment.as_deref(), &[root()])
                .expect("`make setup` has fetched ONNX Runtime");
            let config = RuntimeConfig { library, num_threads: 2, spin: false, memory_limit: None };
            Runtime::start(&config).expect("ONNX Runtime starts")
        })
        .clone()
}
