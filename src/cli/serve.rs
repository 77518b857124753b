//! `serve`: from a pool to a listening server.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{
    args::{Common, ServeArguments},
    setup::{self, Machine},
};
use crate::{
    api::{self, ApiConfig, ApiState},
    serve::{
        FamilyService, FamilyState, InferenceThread, LoadedFamily, Observer, Registry,
        ServiceConfig,
    },
    telemetry::{self, Metrics},
};

/// Serves the pool until the process is told to stop.
pub(super) fn run(common: &Common, arguments: &ServeArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format)?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the async runtime cannot start")?;
    // Bound before the pool is loaded, so that a port in use is told at once.
    let address = format!("{}:{}", arguments.host, arguments.port);
    let listener = tokio
        .block_on(tokio::net::TcpListener::bind(&address))
        .with_context(|| format!("cannot listen on {address}"))?;
    let machine = setup::machine(common)?;
    let metrics = Arc::new(Metrics::new()?);
    let (registry, _thread) = registry(common, arguments, &machine, &metrics)?;
    let registry = Arc::new(registry);
    let observer: Arc<dyn Observer> = metrics.clone();
    let state = ApiState::new(registry.clone(), observer, Arc::new(move || metrics.render()));
    let config = ApiConfig {
        max_body: arguments.max_body,
        request_timeout: Duration::from_secs(arguments.request_timeout),
    };
    let drain = Duration::from_secs(arguments.drain_timeout);
    tokio.block_on(async move {
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_signal(stop.clone(), registry));
        tracing::info!(address = %listener.local_addr()?, "serving");
        let router = api::router(state, &config);
        api::serve(listener, router, stop, drain).await.context("serving failed")
    })
}

/// Loads every family; one that does not load is kept as failed while the others serve.
fn registry(
    common: &Common,
    arguments: &ServeArguments,
    machine: &Machine,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Registry, InferenceThread)> {
    let mut states = Vec::new();
    let mut loaded = Vec::new();
    for name in setup::family_names(&common.pool)? {
        match load(common, machine, &name, arguments.latency_margin) {
            Ok(family) => loaded.push(family),
            Err(error) => {
                tracing::error!(family = name, "not served: {error:#}");
                states.push((name, FamilyState::Failed { reason: format!("{error:#}") }));
            }
        }
    }
    let config = ServiceConfig {
        preload: !arguments.no_preload,
        queue_limit: arguments.queue_limit.max(1),
        max_wait: Duration::from_secs(arguments.request_timeout),
        latency_margin: arguments.latency_margin,
    };
    let observer: Arc<dyn Observer> = metrics.clone();
    let (services, thread) = FamilyService::start(&machine.runtime, loaded, config, &observer)?;
    for service in services {
        tracing::info!(family = service.name(), version = service.digest(), "ready");
        states.push((service.name().to_owned(), FamilyState::Ready(service)));
    }
    Ok((Registry::new(states), thread))
}

fn load(
    common: &Common,
    machine: &Machine,
    name: &str,
    margin: f64,
) -> anyhow::Result<LoadedFamily> {
    let family = setup::family(common, name)?;
    let profile = setup::profile(machine, &family)?;
    let quality = setup::quality(&family)?;
    Ok(LoadedFamily::new(family, profile, quality, margin)?)
}

/// Cancels `stop` on SIGTERM or SIGINT, making the server not ready first.
async fn stop_on_signal(stop: CancellationToken, registry: Arc<Registry>) {
    use tokio::signal::unix::{SignalKind, signal};
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
