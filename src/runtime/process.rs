//! The process's runtime: one environment, and the sessions of all executors.

use std::sync::Arc;

use ort::environment::Environment;

use super::{
    RuntimeConfig, RuntimeError,
    environment::{self},
    residents::Residents,
};

/// The process's ONNX Runtime with its only thread pool. Clones share both.
#[derive(Debug, Clone)]
pub struct Runtime {
    environment: Environment,
    residents: Arc<Residents>,
}

impl Runtime {
    /// Loads the library and starts the pool. A process has one runtime.
    ///
    /// # Errors
    ///
    /// Fails when the library does not load or a runtime was started before.
    pub fn start(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let environment = environment::start(config)?;
        Ok(Self { environment, residents: Residents::new(config.memory_limit) })
    }

    /// Returns the sessions of all executors.
    pub(super) fn residents(&self) -> &Arc<Residents> {
        &self.residents
    }

    /// Returns the bytes of the caches of all sequences.
    pub fn cache_bytes(&self) -> u64 {
        self.residents.cache_bytes()
    }

    /// Returns the environment in which sessions are created.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}
