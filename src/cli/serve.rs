//! The `serve` command: from options to a running server.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    args::{Common, ConnectionArguments, ServeArguments},
    progress::say,
    setup,
};
use crate::{
    api::{ApiConfig, Limits, TlsFiles},
    app::{
        App, Config, Machine, NetworkConfig, PoolConfig, Secrets, check_pins, family_names,
        family_of,
    },
    serve::ServiceConfig,
    telemetry::{self, Metrics, Traces},
};

/// Number of files that the server may have open beside its connections.
const OTHER_FILES: u64 = 512;

/// Serves the pool until the process is told to stop.
pub(super) fn run(common: &Common, arguments: &ServeArguments) -> anyhow::Result<()> {
    let config = config_of(common, arguments);
    if arguments.check_config {
        return check(common, arguments, &config);
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
    telemetry::log_panics();
    raise_open_files(arguments.connections.max_connections);
    let machine = Machine::start(setup::machine_config(common))?;
    let metrics = Arc::new(Metrics::new()?);
    tokio.block_on(async {
        let app = App::build(config, machine, metrics).await?;
        let shutdown = CancellationToken::new();
        tokio::spawn(stop_on_signal(shutdown.clone()));
        tokio::spawn(reload_on_signal(app.secrets().clone()));
        Ok(app.run(shutdown).await?)
    })
}

/// Returns the settings of the server that the options name.
fn config_of(common: &Common, arguments: &ServeArguments) -> Config {
    let ServeArguments { host, port, grpc_port, no_grpc, connections, .. } = arguments;
    let request_timeout = Duration::from_secs(arguments.request_timeout);
    let ConnectionArguments { tls_cert, tls_key, tls_client_ca, .. } = connections;
    let tls = tls_cert.clone().zip(tls_key.clone()).map(|(certificate, key)| TlsFiles {
        certificate,
        key,
        client_authority: tls_client_ca.clone(),
    });
    Config {
        pool: PoolConfig {
            folder: common.pool.clone(),
            profile: arguments.profile.clone(),
            pins: arguments.pin.clone(),
            poll: Duration::from_secs(arguments.poll_pool),
            exit_on_error: arguments.exit_on_error,
        },
        service: ServiceConfig {
            preload: !arguments.no_preload,
            num_workers: arguments.workers.max(1),
            queue_limit: arguments.queue_limit.max(1),
            max_wait: request_timeout,
            latency_margin: arguments.latency_margin,
            shares_prefixes: arguments.share_prefixes,
        },
        api: ApiConfig { max_body: arguments.max_body, request_timeout },
        network: NetworkConfig {
            http: format!("{host}:{port}"),
            grpc: (!no_grpc).then(|| format!("{host}:{grpc_port}")),
            limits: limits_of(connections, arguments.request_timeout),
            clients: arguments.clients.clone(),
            tls,
        },
    }
}

fn limits_of(arguments: &ConnectionArguments, request_timeout: u64) -> Limits {
    Limits {
        max_connections: usize::try_from(arguments.max_connections).unwrap_or(usize::MAX),
        max_streams: arguments.max_streams,
        header_timeout: Duration::from_secs(arguments.header_timeout),
        idle_timeout: Duration::from_secs(arguments.idle_timeout),
        write_timeout: Duration::from_secs(arguments.write_timeout.unwrap_or(request_timeout)),
        drain_timeout: Duration::from_secs(arguments.drain_timeout),
    }
}

/// Checks the options and the pool without serving, and prints the options in effect.
fn check(common: &Common, arguments: &ServeArguments, config: &Config) -> anyhow::Result<()> {
    let names = family_names(&common.pool)?;
    check_pins(&arguments.pin, &names)?;
    for name in &names {
        family_of(&common.pool, name)?;
    }
    Machine::start(setup::machine_config(common))?;
    Secrets::read(&config.network)?;
    let options = toml::to_string(common)? + &toml::to_string(arguments)?;
    say(&format!("{options}# families: {}", names.join(", ")));
    Ok(())
}

/// Raises the process's limit of open files to fit `max_connections`.
fn raise_open_files(max_connections: u32) {
    let wanted = u64::from(max_connections) + OTHER_FILES;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(found) if found >= wanted => {}
        Ok(found) => tracing::warn!(
            found,
            wanted,
            "the limit of open files (ulimit -n) is too low for --max-connections"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// Cancels `shutdown` at SIGTERM or SIGINT.
async fn stop_on_signal(shutdown: CancellationToken) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("draining");
    shutdown.cancel();
}

/// Reads tokens and certificates again at every SIGHUP.
async fn reload_on_signal(secrets: Secrets) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return;
    };
    while hangup.recv().await.is_some() {
        secrets.reload();
    }
}
