//! The server in this process: built, asked over its sockets, and drained.

use serde_json::json;
use tessera::{app::AppError, serve::FamilyState};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{
    fashion_family, root,
    server::{Server, build, config},
    synthetic::Synthetic,
};

/// A request that the synthetic family answers.
const TEXT: &str =
    r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["hello server"]}]}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_answers_on_its_ports_and_drains() {
    let server = Server::start(&root().join("tests/pool"), &fashion_family()).await;
    let (http, grpc, registry) = (server.http, server.grpc, server.registry.clone());
    assert!(http.port() != 0 && grpc.port() != 0 && http != grpc);
    TcpStream::connect(grpc).await.expect("gRPC is served");
    assert_eq!(server.status("GET", "/v2/health/ready", "").await.expect("asked"), 200);
    assert_eq!(server.status("GET", "/v2/models/fashion", "").await.expect("asked"), 200);
    server.stop().await.expect("drained");
    assert!(registry.is_draining());
    assert!(TcpStream::connect(http).await.is_err(), "the port is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_family_of_few_words_and_positions_is_served() {
    let small = Synthetic::new();
    let server = Server::start(small.pool(), &small.load()).await;
    let path = "/v2/models/tiny/infer";
    assert_eq!(server.status("POST", path, TEXT).await.expect("asked"), 200);
    server.stop().await.expect("drained");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qualities_that_cannot_be_do_not_keep_other_families_from_serving() {
    let good = Synthetic::new();
    let record = |quality: f64| {
        json!({ "metric": "", "data": "", "num_texts": 0, "max_tokens": 0, "date": "",
            "command": "", "plans": { "a[0..2]": quality }, "losses": {}, "prediction_error": 0 })
    };
    let misjudged = good.beside("misjudged");
    misjudged.write("quality.json", record(1.5).to_string().as_bytes());
    let worthless = good.beside("worthless");
    worthless.write("quality.json", record(0.5).to_string().as_bytes());
    let floor = "\"quality.json\"\nfloor = 0.9";
    worthless.edit("family.toml", "\"quality.json\"", floor);
    let server = Server::start(good.pool(), &good.load()).await;
    let path = "/v2/models/tiny/infer";
    assert_eq!(server.status("POST", path, TEXT).await.expect("asked"), 200);
    for name in ["misjudged", "worthless"] {
        let state = server.registry.state(name);
        assert!(matches!(state, Some(FamilyState::Failed { .. })), "{name}: {state:?}");
        let path = format!("/v2/models/{name}/ready");
        assert_eq!(server.status("GET", &path, "").await.expect("asked"), 503, "{name}");
    }
    server.stop().await.expect("drained");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_family_that_loads_ends_unless_it_is_to_stay() {
    let broken = Synthetic::new();
    broken.write("quality.json", b"broken");
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config(broken.pool());
    let app = build(config.clone(), folder.path()).await.expect("built");
    let ended = app.run(CancellationToken::new()).await;
    let Err(AppError::NothingServed { reasons }) = ended else { panic!("{ended:?}") };
    assert!(reasons.starts_with("tiny: ") && reasons.contains("quality.json"), "{reasons}");

    config.pool.exit_on_error = false;
    let app = build(config, folder.path()).await.expect("built");
    let (repository, shutdown) = (app.repository().clone(), CancellationToken::new());
    let running = tokio::spawn(app.run(shutdown.clone()));
    let load = tokio::task::spawn_blocking(move || repository.load("tiny"));
    load.await.expect("no panic").expect_err("it is broken still");
    assert!(!running.is_finished(), "it serves on");
    shutdown.cancel();
    running.await.expect("no panic").expect("drained");
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
