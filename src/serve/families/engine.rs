//! Engine that serves all families: the inference threads and the settings of serving.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{loaded::LoadedFamily, warm};
use crate::{
    family::ModuleId,
    runtime::{Executor, Runtime},
    serve::{
        admission::job::FamilyKey,
        config::ServiceConfig,
        observe::Observer,
        planner::Planner,
        request::{
            prepare::PreparingThreads,
            pulse::Pulse,
            service::{FamilyService, SharedParts},
        },
        workers::worker::{self, InferenceThreads},
    },
};

/// Serves families through inference threads.
pub struct Engine {
    runtime: Runtime,
    parts: SharedParts,
    num_families: AtomicU64,
}

impl Engine {
    /// Starts the inference threads. The returned threads must be dropped before the process ends.
    ///
    /// # Errors
    ///
    /// Fails when a thread cannot start.
    pub fn start(
        runtime: Runtime,
        config: ServiceConfig,
        observer: Arc<dyn Observer>,
    ) -> std::io::Result<(Self, InferenceThreads)> {
        let (queue, threads) =
            worker::start(config.num_workers, config.queue_limit, observer.clone())?;
        let parts = SharedParts {
            queue,
            config,
            observer,
            preparing: PreparingThreads::default(),
            pulse: Pulse::default(),
        };
        Ok((Self { runtime, parts, num_families: AtomicU64::new(0) }, threads))
    }

    /// Serves the family `loaded`. With `preload`, its likely plans run once before this returns.
    /// Dropping the last reference to the service releases its sessions. Takes long; must not be
    /// called on an async thread.
    pub fn serve(&self, loaded: LoadedFamily) -> Arc<FamilyService> {
        let key = FamilyKey(self.num_families.fetch_add(1, Ordering::Relaxed));
        let executor = Executor::new(self.runtime.clone(), loaded.family.clone());
        let executor = Arc::new(executor.with_activations(loaded.profile.activations()));
        executor.pin(&loaded.pinned);
        let others = if self.parts.config.preload { loaded.modules() } else { Vec::new() };
        let preload: Vec<ModuleId> = loaded.pinned.iter().copied().chain(others).collect();
        let planner = Arc::new(Planner::new(loaded, Arc::downgrade(&executor)));
        if self.parts.config.preload {
            let ran = warm::warm_up(&executor, &planner.loaded);
            let SharedParts { queue, observer, .. } = &self.parts;
            warm::measure(&executor, &ran, &planner, queue, &**observer);
        }
        self.parts.queue.install(key, executor, preload);
        Arc::new(FamilyService::new(planner, key, self.parts.clone()))
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("config", &self.parts.config).finish_non_exhaustive()
    }
}
