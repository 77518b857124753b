//! The server in this process: built, asked over its sockets, and drained.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tessera::{
    api::{ApiConfig, Limits},
    app::{App, AppError, Config, Machine, NetworkConfig, PoolConfig},
    serve::ServiceConfig,
    telemetry::Metrics,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::support::{CONFIG, computed_cache, fashion_family, machine_key, root, runtime};

fn config(pool: &Path) -> Config {
    let seconds = Duration::from_secs;
    let limits = Limits {
        max_connections: 16,
        max_streams: 16,
        header_timeout: seconds(10),
        idle_timeout: seconds(10),
        write_timeout: seconds(10),
        drain_timeout: seconds(10),
    };
    Config {
        pool: PoolConfig { folder: pool.to_owned(), pins: Vec::new(), poll: Duration::ZERO },
        service: ServiceConfig { preload: false, ..CONFIG },
        api: ApiConfig::default(),
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
async fn build(config: Config, cache: &Path) -> Result<App, AppError> {
    let machine = Machine::new(runtime(), machine_key(), Some(cache.to_owned()));
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    App::build(config, machine, metrics, Arc::new(())).await
}

/// Returns the status line of the answer to a GET of `path`.
async fn status_of(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_answers_on_its_ports_and_drains() {
    let cache = tempfile::tempdir().expect("a folder");
    computed_cache(&fashion_family()).write(cache.path()).expect("written");
    let app = build(config(&root().join("tests/pool")), cache.path()).await.expect("built");
    let (http, grpc) = (app.http_address().expect("bound"), app.grpc_address().expect("bound"));
    assert!(http.port() != 0 && grpc.port() != 0 && http != grpc);
    let registry = app.repository().registry().clone();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(app.run(shutdown.clone()));
    while registry.families().is_empty() || !registry.is_ready() {
        tokio::task::yield_now().await;
    }
    assert_eq!(status_of(http, "/v2/health/ready").await.expect("asked"), "HTTP/1.1 200 OK");
    assert_eq!(status_of(http, "/v2/models/fashion").await.expect("asked"), "HTTP/1.1 200 OK");
    shutdown.cancel();
    running.await.expect("no panic").expect("drained");
    assert!(registry.is_draining());
    assert!(TcpStream::connect(http).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn a_wrong_setting_is_an_error_before_anything_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let build = |config| build(config, folder.path());
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = taken.local_addr().expect("an address").to_string();

    let mut config = config(&root().join("tests/pool"));
    config.network.http.clone_from(&address);
    let error = build(config.clone()).await.expect_err("taken").to_string();
    assert_eq!(error, format!("cannot listen on {address}"));
    config.network.http = "127.0.0.1:0".into();

    config.pool.pins = vec!["nobody/l".into()];
    let error = build(config.clone()).await.expect_err("unknown").to_string();
    assert_eq!(error, "--pin: `nobody/l` is not a FAMILY/NAME of the pool's families");
    config.pool.pins.clear();

    config.network.clients = Some(folder.path().join("missing.toml"));
    assert!(matches!(build(config.clone()).await, Err(AppError::Clients(_))));
    config.network.clients = None;

    config.pool.folder = folder.path().to_owned();
    assert!(matches!(build(config.clone()).await, Err(AppError::EmptyPool { .. })));
    config.pool.folder = folder.path().join("missing");
    assert!(matches!(build(config).await, Err(AppError::Pool { .. })));
}
