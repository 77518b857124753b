//! Engine that serves all families: the inference threads and the settings of serving.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{loaded::LoadedFamily, warm};
use crate::{
    family::{CacheType, ModuleId, ModuleKind},
    runtime::{Executor, Runtime},
    serve::{
        admission::job::FamilyKey,
        config::ServiceConfig,
        generation::{Generator, Limits, Sharing, steps::Bounds},
        observe::Observer,
        planner::Planner,
        request::{
            prepare::PreparingThreads,
            pulse::Pulse,
            service::{FamilyService, SharedParts},
        },
        workers::{
            idle::Idle,
            worker::{self, InferenceThreads},
        },
    },
};

/// Bounds of the steps of a family's sequences.
const STEPS: Bounds = Bounds { max_running: 32, prompt_tokens: 512, prompt_tokens_beside: 64 };

/// Serves families through inference threads.
pub struct Engine {
    runtime: Runtime,
    parts: SharedParts,
    num_families: AtomicU64,
}

/// Work for a served family in the time that requests leave. It would slow the loading of another
/// family down, and be measured while that is loaded.
#[derive(Debug)]
pub(super) struct Ahead {
    key: FamilyKey,
    /// Modules to load.
    preload: Vec<ModuleId>,
    /// Measurements.
    idle: Option<Idle>,
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
            reading_grammars: PreparingThreads::default(),
            pulse: Pulse::default(),
        };
        Ok((Self { runtime, parts, num_families: AtomicU64::new(0) }, threads))
    }

    /// Serves the family `loaded`. With `preload`, its likely plans run once before this returns.
    /// Dropping the last reference to the service releases its sessions. Returns the service, and
    /// the work that is to begin when no other family is being loaded. Takes long, unless
    /// `is_stopped` returns true; must not be called on an async thread.
    pub(super) fn serve(
        &self,
        mut loaded: LoadedFamily,
        is_stopped: &dyn Fn() -> bool,
    ) -> (Arc<FamilyService>, Ahead) {
        let key = FamilyKey(self.num_families.fetch_add(1, Ordering::Relaxed));
        let executor = Executor::new(self.runtime.clone(), loaded.family.clone());
        let executor = Arc::new(executor.with_activations(loaded.profile.activations()));
        executor.pin(&loaded.pinned);
        load(&executor, &loaded.pinned);
        let generator = self.generator(&executor, &loaded);
        // A family that generates text is asked for steps, seldom for whole sequences.
        let steps = generator.clone().filter(|_| loaded.family.language().is_some());
        let has_scales = loaded.family.manifest.generation.cache == CacheType::Int8;
        let is_eager = self.parts.config.preload && steps.is_none();
        let others = if is_eager { loaded.modules() } else { Vec::new() };
        // There may be room for pinned modules later that is not there now.
        let preload: Vec<ModuleId> = loaded.pinned.iter().copied().chain(others).collect();
        let work = loaded.idle.take().filter(|_| is_eager);
        let planner = Arc::new(Planner::new(loaded, Arc::downgrade(&executor)));
        match &steps {
            // The scales of 8-bit caches are those of the best plan, whatever is asked for first.
            Some(steps) if self.parts.config.preload || has_scales => {
                warm::warm_up_steps(steps, &planner.loaded);
            }
            _ if is_eager => {
                let ran = warm::warm_up(&executor, &planner.loaded, is_stopped);
                let SharedParts { queue, observer, .. } = &self.parts;
                if !is_stopped() {
                    warm::measure(&executor, &ran, &planner, queue, &**observer);
                }
            }
            _ => {}
        }
        let idle = work.map(|work| Idle { work, planner: Arc::downgrade(&planner) });
        self.parts.queue.install(key, executor);
        let service = FamilyService::new(planner, key, self.parts.clone(), generator);
        let service = Arc::new(service);
        (service, Ahead { key, preload, idle })
    }

    /// Begins the work for a served family. It takes the time that requests leave.
    pub(super) fn work_ahead(&self, Ahead { key, preload, idle }: Ahead) {
        self.parts.queue.work_ahead(key, preload, idle);
    }

    /// Returns a generator if the family has a row of outputs for each token, and each of its
    /// attention modules keeps a cache.
    fn generator(&self, executor: &Arc<Executor>, loaded: &LoadedFamily) -> Option<Arc<Generator>> {
        let family = &loaded.family;
        let modules = family.graph.modules().iter().enumerate();
        let mut attention = modules
            .filter(|(_, module)| module.kind == ModuleKind::Attention)
            .map(|(index, _)| family.cache(ModuleId(index)).is_some())
            .peekable();
        let is_cached = attention.peek().is_some() && attention.all(|keeps| keeps);
        (is_cached && family.manifest.output.per_token).then(|| {
            let ServiceConfig { queue_limit, shares_prefixes, .. } = self.parts.config;
            let sharing = if shares_prefixes { Sharing::Everyone } else { Sharing::Client };
            let limits = Limits { max_sequences: queue_limit, steps: STEPS, sharing };
            Arc::new(Generator::new(executor.clone(), limits))
        })
    }
}

/// Loads modules that are to stay, as far as there is room for them.
fn load(executor: &Executor, pinned: &[ModuleId]) {
    for module in pinned {
        match executor.load_ahead(*module) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => tracing::warn!(%error, "a pinned module cannot be loaded"),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("config", &self.parts.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        plan::Budget,
        runtime::support_tests::runtime,
        serve::support_tests::{CHEAP, Runs, config, request, small},
    };

    /// Longest time that a test waits for a thread.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn start(preload: bool) -> (Engine, InferenceThreads, Arc<Runs>) {
        let runs = Arc::new(Runs::default());
        let config = ServiceConfig { preload, ..config() };
        let (engine, threads) = Engine::start(runtime(), config, runs.clone()).expect("started");
        (engine, threads, runs)
    }

    /// Asks `service` for an answer by the cheap plan, whose path has four modules.
    async fn ask(service: &Arc<FamilyService>) {
        let budget = Budget { plan: Some(CHEAP.into()), ..Budget::default() };
        let response = service.infer(request(0.5, budget)).await.expect("answered");
        assert_eq!(response.outputs[0].0, "logits");
        assert_eq!(response.report.plan.plan, CHEAP);
    }

    #[tokio::test]
    async fn sessions_are_released_with_the_last_reference_to_their_service() {
        let (engine, _threads, runs) = start(false);
        let (first, _) = engine.serve(small(), &|| false);
        ask(&first).await;
        assert_eq!(runs.residency().num_modules, 4);
        drop(first);
        let (second, _) = engine.serve(small(), &|| false);
        ask(&second).await;
        let found = runs.residency();
        assert_eq!((found.num_modules, found.num_loads), (4, 8), "the second family's alone");
    }

    #[tokio::test]
    async fn two_versions_of_a_family_answer_beside_one_another() {
        let (engine, _threads, runs) = start(false);
        let [(old, _), (new, _)] = [(); 2].map(|()| engine.serve(small(), &|| false));
        ask(&new).await;
        ask(&old).await;
        assert_eq!(runs.residency().num_modules, 8);
        assert_eq!((old.name(), old.digest()), (new.name(), new.digest()));
    }

    #[test]
    fn with_preloading_the_machine_is_measured_before_the_family_is_ready() {
        let (engine, _threads, runs) = start(false);
        let _service = engine.serve(small(), &|| false);
        assert_eq!(runs.num_learned(), 0);
        let (engine, _threads, runs) = start(true);
        let _service = engine.serve(small(), &|| false);
        assert!(runs.num_learned() > 0);
    }

    #[tokio::test]
    async fn nothing_is_loaded_ahead_before_the_engine_is_told() {
        let (engine, _threads, runs) = start(true);
        let (service, ahead) = engine.serve(small(), &|| false);
        ask(&service).await;
        let warm = runs.residency();
        assert!(warm.num_modules < 4 + small().modules().len() as u64, "some are left");
        ask(&service).await;
        assert_eq!(runs.residency(), warm, "the thread had nothing else to do");
        engine.work_ahead(ahead);
        // Modules are loaded when no request came for a while.
        let end = Instant::now() + PATIENCE;
        while runs.residency().num_modules == warm.num_modules {
            assert!(Instant::now() < end, "nothing is loaded");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
