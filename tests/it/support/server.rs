//! The whole server in this process, on free ports of its own.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tessera::{
    api::Limits,
    app::{App, AppError, Config, Machine, NetworkConfig, PoolConfig},
    assembly::Family,
    serve::Registry,
    telemetry::Metrics,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinHandle, yield_now},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{CONFIG, PATIENCE, api_config, computed_cache, machine_key, runtime};

/// A server that runs.
pub(crate) struct Server {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) registry: Arc<Registry>,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), AppError>>,
}

impl Server {
    /// Starts a server of the families in `pool` and waits until each is loaded or has failed. The
    /// profile of `family` is computed, others are measured.
    pub(crate) async fn start(pool: &Path, family: &Family) -> Self {
        let cache = tempfile::tempdir().expect("a folder");
        computed_cache(family).write(cache.path()).expect("written");
        let app = build(config(pool), cache.path()).await.expect("built");
        let (http, grpc) = (app.http_address().expect("bound"), app.grpc_address().expect("bound"));
        let registry = app.repository().registry().clone();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(app.run(shutdown.clone()));
        let is_loaded = async {
            while !registry.is_ready() {
                yield_now().await;
            }
        };
        timeout(PATIENCE, is_loaded).await.expect("a family is ready");
        Self { http, grpc, registry, shutdown, running }
    }

    /// Returns the status of the answer to a request.
    pub(crate) async fn status(&self, method: &str, path: &str, body: &str) -> io::Result<u16> {
        let mut stream = TcpStream::connect(self.http).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(status.unwrap_or_else(|| panic!("{answer}")))
    }

    /// Drains the server. Returns how it ended.
    pub(crate) async fn stop(self) -> Result<(), AppError> {
        self.shutdown.cancel();
        timeout(PATIENCE, self.running).await.expect("it drains").expect("no panic")
    }
}

/// Returns settings with free ports for the families in `pool`.
pub(crate) fn config(pool: &Path) -> Config {
    let limits = Limits {
        max_connections: 16,
        max_streams: 16,
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        write_timeout: PATIENCE,
        drain_timeout: PATIENCE,
    };
    Config {
        pool: PoolConfig {
            folder: pool.to_owned(),
            profile: None,
            pins: Vec::new(),
            poll: Duration::ZERO,
            exit_on_error: true,
        },
        service: CONFIG,
        api: api_config(),
        network: NetworkConfig {
            http: "127.0.0.1:0".into(),
            grpc: Some("127.0.0.1:0".into()),
            limits,
            clients: None,
            tls: None,
        },
    }
}

/// Builds a server that finds its profiles in `cache`.
pub(crate) async fn build(config: Config, cache: &Path) -> Result<App, AppError> {
    let machine = Machine::new(runtime(), machine_key(), Some(cache.to_owned()));
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    App::build(config, machine, metrics).await
}
