//! Building and running a server.

use std::{net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    AppError, Config, Machine, NetworkConfig, Secrets,
    follow::follow_pool,
    loader::{PoolLoader, check_pins, family_names},
};
use crate::{
    api::{self, ApiState, Transport},
    serve::{Engine, InferenceThreads, Observer, Registry, Repository},
    telemetry::{self, Metrics},
};

/// A server whose sockets are bound and whose families are not loaded yet.
pub struct App {
    config: Config,
    http: TcpListener,
    grpc: Option<TcpListener>,
    /// Names of the families to load.
    names: Vec<String>,
    repository: Arc<Repository>,
    threads: InferenceThreads,
    metrics: Arc<Metrics>,
    secrets: Secrets,
    /// Is cancelled when the server stops; loading stops with it.
    stop: CancellationToken,
}

impl App {
    /// Binds the sockets, reads the clients and starts the inference threads. No family is loaded
    /// before [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// Fails when a setting is wrong, a port is in use or a thread does not start.
    pub async fn build(
        config: Config,
        machine: Machine,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AppError> {
        let NetworkConfig { http, grpc, .. } = &config.network;
        let http = listen(http).await?;
        let grpc = match grpc {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let names = family_names(&config.pool.folder)?;
        check_pins(&config.pool.pins, &names)?;
        let secrets = Secrets::read(&config.network)?;
        let observer: Arc<dyn Observer> = metrics.clone();
        let (engine, threads) = Engine::start(machine.runtime.clone(), config.service, observer)
            .map_err(AppError::Threads)?;
        let stop = CancellationToken::new();
        let loader = PoolLoader {
            pool: config.pool.clone(),
            machine,
            margin: config.service.latency_margin,
            stop: stop.clone(),
        };
        let registry = Arc::new(Registry::default());
        let repository = Arc::new(Repository::new(registry, engine, Box::new(loader)));
        Ok(Self { config, http, grpc, names, repository, threads, metrics, secrets, stop })
    }

    /// Returns the address of HTTP, or None if the system does not say it.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.local_addr().ok()
    }

    /// Returns the address of gRPC, or None if it is not served.
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc.as_ref()?.local_addr().ok()
    }

    /// Returns the tokens and certificates, which can be read again while the server runs.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Returns the families.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// Loads the families and serves them until `shutdown` is cancelled, then drains. Returns when
    /// no inference thread is inside the runtime any more.
    ///
    /// # Errors
    ///
    /// Fails when a socket fails.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves threads behind; cancel `shutdown` instead.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let Self { config, http, grpc, names, repository, threads, metrics, secrets, stop } = self;
        let registry = repository.registry().clone();
        let observer: Arc<dyn Observer> = metrics.clone();
        let transport = Transport::new(config.network.limits, secrets.tls, observer.clone());
        let state = ApiState {
            gate: secrets.gate,
            continue_trace: Arc::new(telemetry::continue_trace),
            ..ApiState::new(repository.clone(), observer, Arc::new(move || metrics.render()))
        };
        let following = follow_pool(repository.clone(), config.pool.poll, stop.clone());
        let loaded = Loaded {
            registry: registry.clone(),
            stop: stop.clone(),
            exit_on_error: config.pool.exit_on_error,
        };
        let loading = spawn_blocking(move || {
            repository.load_all(&names);
            check_served(&loaded)
        });
        tokio::spawn(following);
        let draining = stop.clone();
        tokio::spawn(async move {
            shutdown.cancelled().await;
            registry.start_draining();
            draining.cancel();
        });
        let router = api::router(state.clone(), &config.api);
        let calls = api::serve_grpc(grpc, state, config.api, transport.clone(), stop.clone());
        let routes = api::serve_http(http, router, transport, stop.clone());
        let ended = tokio::try_join!(routes, calls).map_err(AppError::Serving);
        stop.cancel();
        // A family may still be loading inside ONNX Runtime; the process must not end before that.
        let loaded = loading.await.unwrap_or(Err(AppError::Panicked));
        drop(spawn_blocking(move || drop(threads)).await);
        ended.and(loaded)
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("App").field("config", &self.config).finish_non_exhaustive()
    }
}

/// State of a server whose families were loaded.
struct Loaded {
    registry: Arc<Registry>,
    stop: CancellationToken,
    exit_on_error: bool,
}

/// Stops the server if none of its families loaded.
fn check_served(Loaded { registry, stop, exit_on_error }: &Loaded) -> Result<(), AppError> {
    let failures = registry.failures();
    if !exit_on_error || stop.is_cancelled() || failures.len() < registry.families().len() {
        return Ok(());
    }
    stop.cancel();
    let reasons = failures.iter().map(|(name, reason)| format!("{name}: {reason}"));
    let reasons: Vec<String> = reasons.collect();
    Err(AppError::NothingServed { reasons: reasons.join("; ") })
}

async fn listen(address: &str) -> Result<TcpListener, AppError> {
    let wrap = |source| AppError::Listen { address: address.to_owned(), source };
    TcpListener::bind(address).await.map_err(wrap)
}
