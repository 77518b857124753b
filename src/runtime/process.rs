//! The process's runtime: one environment, and the sessions of all executors.

use std::sync::Arc;

use ort::environment::Environment;

#[cfg(test)]
use super::residents::{Held, Process};
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
    num_threads: usize,
}

impl Runtime {
    /// Loads the library and starts the pool. A process has one runtime.
    ///
    /// # Errors
    ///
    /// Fails when the library does not load or a runtime was started before.
    pub fn start(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let environment = environment::start(config)?;
        let (residents, num_threads) = (Residents::new(config.memory_limit), config.num_threads);
        Ok(Self { environment, residents, num_threads })
    }

    /// Returns the sessions of all executors.
    pub(super) fn residents(&self) -> &Arc<Residents> {
        &self.residents
    }

    /// Returns a runtime on the same pool, with sessions of its own. Its memory is simulated: the
    /// process holds nothing but these sessions.
    #[cfg(test)]
    pub(crate) fn apart(&self, memory_limit: Option<u64>) -> Self {
        let process = Process { held: Held::default, give_back: || () };
        let residents = Arc::new(Residents::of_process(memory_limit, process));
        Self { environment: self.environment.clone(), residents, num_threads: self.num_threads }
    }

    /// Returns the number of threads of the pool.
    pub fn num_threads(&self) -> usize {
        self.num_threads
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
