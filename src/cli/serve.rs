//! The `serve` command: from a pool to a listening server.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{
    args::{Common, ConnectionArguments, ServeArguments},
    progress::say,
    setup::{self, Machine},
};
use crate::{
    api::{self, ApiConfig, ApiState, Clients, Gate, Limits, Tls, TlsFiles, Transport},
    pool::Stamps,
    serve::{
        Engine, InferenceThreads, LoadedFamily, Loader, Observer, Registry, Repository, Seen,
        ServiceConfig,
    },
    telemetry::{self, Metrics, Traces},
};

/// Number of files that the server may have open beside its connections.
const OTHER_FILES: u64 = 512;

/// Serves the pool until the process is told to stop.
pub(super) fn run(common: &Common, arguments: &ServeArguments) -> anyhow::Result<()> {
    if arguments.check_config {
        return check(common, arguments);
    }
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Answers come from other threads; they must not wait behind dozens of new requests.
        .global_queue_interval(1)
        .enable_all()
        .build()
        .context("the async runtime cannot start")?;
    // Dropped before the runtime, through which it sends spans.
    let traces = {
        let _inside = tokio.enter();
        arguments.otlp_endpoint.as_deref().map(Traces::start).transpose()?
    };
    telemetry::start_logging(&common.log, common.log_format, traces.as_ref())?;
    // Bound before the pool is loaded, so that a port in use is reported at once.
    let http = tokio.block_on(listen(&arguments.host, arguments.port))?;
    let grpc = match arguments.no_grpc {
        true => None,
        false => Some(tokio.block_on(listen(&arguments.host, arguments.grpc_port))?),
    };
    let stop = CancellationToken::new();
    let names = setup::family_names(&common.pool)?;
    check_pins(&arguments.pin, &names)?;
    let machine = setup::machine(common)?;
    let metrics = Arc::new(Metrics::new()?);
    let secrets = Secrets::read(arguments)?;
    let (repository, _threads) = repository(common, arguments, machine, &metrics, &stop)?;
    let registry = repository.registry().clone();
    let observer: Arc<dyn Observer> = metrics.clone();
    let transport = Transport::new(limits(arguments), secrets.tls.clone(), observer.clone());
    let state = ApiState {
        gate: secrets.gate.clone(),
        continue_trace: Arc::new(telemetry::continue_trace),
        ..ApiState::new(repository.clone(), observer, Arc::new(move || metrics.render()))
    };
    let config = ApiConfig {
        max_body: arguments.max_body,
        request_timeout: Duration::from_secs(arguments.request_timeout),
    };
    let poll = Duration::from_secs(arguments.poll_pool);
    let following = follow_pool(repository.clone(), poll, stop.clone());
    let loading = std::thread::spawn(move || repository.load_all(&names));
    let served = tokio.block_on(async {
        tokio::spawn(stop_on_signal(stop.clone(), registry));
        tokio::spawn(secrets.reload_on_signal(arguments.clone()));
        tokio::spawn(following);
        let router = api::router(state.clone(), &config);
        let calls = api::serve_grpc(grpc, state, config, transport.clone(), stop.clone());
        let routes = api::serve_http(http, router, transport, stop.clone());
        let ended = tokio::try_join!(routes, calls).context("serving failed");
        stop.cancel();
        ended.map(|_| ())
    });
    // A family may still be loading inside ONNX Runtime; the process must not end before that.
    drop(loading.join());
    served
}

/// Returns the names in `pins` that belong to `family`, without the family's name.
fn pins_of<'a>(pins: &'a [String], family: &str) -> impl Iterator<Item = &'a str> {
    let own = move |pin: &'a String| {
        let (of, name) = pin.split_once('/')?;
        (of == family).then_some(name)
    };
    pins.iter().filter_map(own)
}

/// Checks that every pin names a family of the pool.
fn check_pins(pins: &[String], families: &[String]) -> anyhow::Result<()> {
    for pin in pins {
        let is_known = families.iter().any(|family| {
            pin.strip_prefix(family.as_str()).is_some_and(|rest| rest.starts_with('/'))
        });
        anyhow::ensure!(is_known, "--pin: `{pin}` is no FAMILY/NAME of the pool's families");
    }
    Ok(())
}

/// Follows the pool's folder every `poll` until `stop` is cancelled. Returns at once if `poll` is
/// zero.
async fn follow_pool(repository: Arc<Repository>, poll: Duration, stop: CancellationToken) {
    if poll.is_zero() {
        return;
    }
    let mut ticks = tokio::time::interval(poll);
    let mut seen = Seen::default();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let repository = repository.clone();
        let look = move || {
            repository.follow(&mut seen);
            seen
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(after) => seen = after,
            Err(error) => return tracing::error!(%error, "the pool is followed no more"),
        }
    }
}

/// Checks the options and the pool without serving, and prints the options in effect.
fn check(common: &Common, arguments: &ServeArguments) -> anyhow::Result<()> {
    let names = setup::family_names(&common.pool)?;
    check_pins(&arguments.pin, &names)?;
    for name in &names {
        setup::family(common, name)?;
    }
    setup::machine(common)?;
    Secrets::read(arguments)?;
    let options = toml::to_string(common)? + &toml::to_string(arguments)?;
    say(&format!("{options}# families: {}", names.join(", ")));
    Ok(())
}

/// Tokens and certificates for clients; their files are read again while the server runs.
struct Secrets {
    gate: Arc<Gate>,
    tls: Option<Arc<Tls>>,
}

impl Secrets {
    fn read(arguments: &ServeArguments) -> anyhow::Result<Self> {
        let ConnectionArguments { tls_cert, tls_key, tls_client_ca, .. } = &arguments.connections;
        let files = tls_cert.clone().zip(tls_key.clone()).map(|(certificate, key)| TlsFiles {
            certificate,
            key,
            client_authority: tls_client_ca.clone(),
        });
        let tls = files.map(Tls::read).transpose()?.map(Arc::new);
        Ok(Self { gate: Arc::new(Gate::new(clients(arguments)?)), tls })
    }

    /// Reads the files again at every SIGHUP; a wrong file changes nothing.
    async fn reload_on_signal(self, arguments: ServeArguments) {
        let Ok(mut hangup) = signal(SignalKind::hangup()) else {
            return;
        };
        while hangup.recv().await.is_some() {
            match clients(&arguments) {
                Ok(clients) => self.gate.replace(clients),
                Err(error) => tracing::error!("the clients stay as they were: {error:#}"),
            }
            if let Some(Err(error)) = self.tls.as_ref().map(|tls| tls.reload()) {
                let error = anyhow::Error::new(error);
                tracing::error!("the certificate stays as it was: {error:#}");
            }
            tracing::info!("clients and certificates were read again");
        }
    }
}

/// Reads the file of clients, or returns None if there is no such file in the options.
fn clients(arguments: &ServeArguments) -> anyhow::Result<Option<Clients>> {
    Ok(arguments.clients.as_deref().map(Clients::read).transpose()?)
}

/// Returns the limits of connections, after raising the process's limit of open files to fit them.
fn limits(serve: &ServeArguments) -> Limits {
    let arguments = &serve.connections;
    let wanted = u64::from(arguments.max_connections) + OTHER_FILES;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(found) if found >= wanted => {}
        Ok(found) => tracing::warn!(
            found,
            wanted,
            "the limit of open files (ulimit -n) is too low for --max-connections"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
    Limits {
        max_connections: usize::try_from(arguments.max_connections).unwrap_or(usize::MAX),
        max_streams: arguments.max_streams,
        header_timeout: Duration::from_secs(arguments.header_timeout),
        idle_timeout: Duration::from_secs(arguments.idle_timeout),
        write_timeout: Duration::from_secs(
            arguments.write_timeout.unwrap_or(serve.request_timeout),
        ),
        drain_timeout: Duration::from_secs(arguments.drain_timeout),
    }
}

async fn listen(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let address = format!("{host}:{port}");
    TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))
}

fn repository(
    common: &Common,
    arguments: &ServeArguments,
    machine: Machine,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> anyhow::Result<(Arc<Repository>, InferenceThreads)> {
    let config = ServiceConfig {
        preload: !arguments.no_preload,
        num_workers: arguments.workers.max(1),
        queue_limit: arguments.queue_limit.max(1),
        max_wait: Duration::from_secs(arguments.request_timeout),
        latency_margin: arguments.latency_margin,
    };
    let observer: Arc<dyn Observer> = metrics.clone();
    let (engine, threads) = Engine::start(machine.runtime.clone(), config, observer)
        .context("the inference threads cannot start")?;
    let loader = PoolLoader {
        common: common.clone(),
        machine,
        margin: arguments.latency_margin,
        pins: arguments.pin.clone(),
        stop: stop.clone(),
    };
    let registry = Arc::new(Registry::default());
    Ok((Arc::new(Repository::new(registry, engine, Box::new(loader))), threads))
}

/// Loader of families from the pool's folder; measures modules that have no profile yet.
struct PoolLoader {
    common: Common,
    machine: Machine,
    margin: f64,
    /// Modules that are never evicted, as FAMILY/NAME.
    pins: Vec<String>,
    stop: CancellationToken,
}

impl PoolLoader {
    fn try_load(&self, name: &str) -> anyhow::Result<LoadedFamily> {
        anyhow::ensure!(!self.stop.is_cancelled(), "the server is stopping");
        let family = setup::family(&self.common, name)?;
        let profile = setup::profile_until(&self.machine, &family, &self.stop)?;
        let quality = setup::quality(&family)?;
        let pins: Vec<&str> = pins_of(&self.pins, name).collect();
        let loaded = LoadedFamily::new(family, profile, quality, self.margin)?;
        loaded.pin(&pins).map_err(|reason| anyhow::anyhow!("--pin: {reason}"))
    }
}

impl Loader for PoolLoader {
    fn names(&self) -> Result<Vec<String>, String> {
        setup::found_families(&self.common.pool).map_err(|error| format!("{error:#}"))
    }

    fn stamps(&self, name: &str) -> Option<Stamps> {
        Stamps::take(&self.common.pool.join(name)).ok()
    }

    fn load(&self, name: &str) -> Result<LoadedFamily, String> {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.try_load(name)))
            .map_err(|_| "loading it panicked".to_owned())?
            .map_err(|error| format!("{error:#}"))
    }
}

/// Waits for SIGTERM or SIGINT, makes the server not ready, and then cancels `stop`.
async fn stop_on_signal(stop: CancellationToken, registry: Arc<Registry>) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("draining");
    registry.start_draining();
    stop.cancel();
}
