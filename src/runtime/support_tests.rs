//! Runtime of the unit tests. A process starts ONNX Runtime once, so all tests share it.

use std::{path::PathBuf, sync::OnceLock};

use super::{Runtime, RuntimeConfig, find_library};

/// Returns the runtime of this process, which has no memory limit.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let start = || {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
        let library = find_library(None, environment.as_deref(), &[root]).expect("`make setup`");
        let config = RuntimeConfig { library, num_threads: 1, spin: false, memory_limit: None };
        Runtime::start(&config).expect("ONNX Runtime starts")
    };
    RUNTIME.get_or_init(start).clone()
}
