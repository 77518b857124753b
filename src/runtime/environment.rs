//! The process's ONNX Runtime environment.

use std::{path::PathBuf, sync::Arc};

use ort::environment::{Environment, GlobalThreadPoolOptions};

use super::RuntimeError;

/// Settings of the runtime.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Path of ONNX Runtime's shared library.
    pub library: PathBuf,
    /// Number of threads in the pool that all sessions share; 0 for one per core.
    pub num_threads: usize,
    /// Whether idle pool threads spin. Spinning answers sooner and uses processor time.
    pub spin: bool,
    /// Most bytes that the process may hold; `None` for no limit. Modules are evicted to keep the
    /// limit.
    pub memory_limit: Option<u64>,
}

/// Loads the library and starts the pool of threads that all sessions share.
///
/// # Errors
///
/// Fails when the library does not load or an environment was started before.
pub(super) fn start(config: &RuntimeConfig) -> Result<Environment, RuntimeError> {
    let wrap =
        |source: ort::Error| RuntimeError::BadLibrary { path: config.library.clone(), source };
    let builder =
        ort::init_from(&config.library).map_err(|e| wrap(ort::Error::new(e.to_string())))?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(config.num_threads)
        .and_then(|pool| pool.with_inter_threads(1))
        .and_then(|pool| pool.with_spin_control(config.spin))
        .map_err(wrap)?;
    let environment = builder
        .with_name("tessera")
        .with_telemetry(false)
        .with_global_thread_pool(pool)
        .with_logger(Arc::new(log))
        .build()
        .map_err(wrap)?;
    environment.set_log_level(ort::logging::LogLevel::Warning);
    Ok(environment)
}

/// Logs ONNX Runtime's messages. Its warnings seldom matter to an operator, so they are logged for
/// debugging only.
fn log(level: ort::logging::LogLevel, _category: &str, id: &str, _place: &str, message: &str) {
    use ort::logging::LogLevel;
    match level {
        LogLevel::Fatal | LogLevel::Error => tracing::warn!(session = id, "{message}"),
        _ => tracing::debug!(session = id, "{message}"),
    }
}
