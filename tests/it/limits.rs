//! Small requests that ask for much, and errors that are sent before the body has come.

use std::{io::Write, net::SocketAddr, sync::Arc};

use axum::http::{Request, header};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tessera::{
    api::{ApiState, Clients, Gate, router, serve_grpc, serve_http},
    serve::{FamilyState, Registry},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{
    Families, PATIENCE, Served, api_config,
    http::{app, send, state, text_request, transport},
};

const TOKEN: &str = "Bearer a token of alice";

/// Codes of gRPC.
const OK: i32 = 0;
const NOT_FOUND: i32 = 5;
const RESOURCE_EXHAUSTED: i32 = 8;
const UNAUTHENTICATED: i32 = 16;

/// Returns what the routes work with where clients need tokens.
fn guarded() -> ApiState {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "[clients.alice]\ntoken = \"a token of alice\"\n\
                [clients.bob]\ntoken = \"a token of bob's\"\nrequests_per_second = 1\n";
    std::fs::write(file.path(), text).expect("written");
    let clients = Clients::read(file.path()).expect("valid");
    ApiState { gate: Arc::new(Gate::new(Some(clients))), ..state() }
}

async fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Serves HTTP until what is returned is dropped.
async fn http_server(state: ApiState) -> (SocketAddr, DropGuard) {
    let (listener, address) = bound().await;
    let stop = CancellationToken::new();
    let routes = router(state, &api_config());
    tokio::spawn(serve_http(listener, routes, transport(8), stop.clone()));
    (address, stop.drop_guard())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("written")
}

#[tokio::test]
async fn rows_of_tokens_are_bounded_before_they_are_padded() {
    let app = app();
    for (long, rows) in [(40_000, 10_000), (8_000, 8_000)] {
        // Padded, they would take gigabytes.
        let row = vec!["1"; long].join(",");
        let body = format!("{{\"model\":\"text\",\"input\":[[{row}]{}]}}", ",[1]".repeat(rows));
        let reply = send(&app, "POST", "/v1/embeddings", body).await;
        let error = reply.expect(413);
        let message = error["error"]["message"].as_str().expect("a message");
        assert_eq!(message, format!("the batch is {}, over the limit of 64", rows + 1));
    }
}

#[tokio::test]
async fn many_small_values_are_counted_before_they_are_read() {
    let (address, _server) = http_server(state()).await;
    let many = "1,".repeat(4 << 20);
    for (path, body) in [
        ("/v1/embeddings", format!("{{\"model\":\"text\",\"input\":[{many}1]}}")),
        ("/v1/embeddings", format!("{{\"x\":[{many}1],\"model\":\"text\",\"input\":1}}")),
        ("/v2/models/text/infer", format!("{{\"parameters\":{{\"x\":[{many}1]}}}}")),
        ("/v2/models/text/infer", format!("{{\"inputs\":[{{\"shape\":[{many}1]}}]}}")),
        ("/v2/models/text/plan", format!("{{\"parameters\":{{\"x\":[{many}1]}}}}")),
        ("/v2/repository/index", format!("{{\"ready\":[{many}1]}}")),
        ("/v2/repository/models/text/load", format!("{{\"parameters\":[{many}1]}}")),
    ] {
        let packed = gzip(body.as_bytes());
        assert!(packed.len() < 64 << 10, "{} bytes", packed.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-encoding: GZIP\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            packed.len()
        );
        let mut connection = TcpStream::connect(address).await.expect("connected");
        connection.write_all(&[head.as_bytes(), &packed].concat()).await.expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413"), "{path}: {answer}");
        assert!(answer.contains("number of values"), "{path}: {answer}");
    }
}

/// Serves gRPC until what is returned is dropped.
async fn grpc_server(state: ApiState) -> (SocketAddr, DropGuard) {
    let (listener, address) = bound().await;
    let stop = CancellationToken::new();
    let config = api_config();
    tokio::spawn(serve_grpc(Some(listener), state, config, transport(8), stop.clone()));
    (address, stop.drop_guard())
}

/// Sends a call and returns its status.
async fn call(address: SocketAddr, path: &str, token: Option<&str>, message: Message) -> i32 {
    let stream = TcpStream::connect(address).await.expect("connected");
    let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = client.await.expect("a connection");
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://{address}/{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers");
    if message.is_packed {
        request = request.header("grpc-encoding", "gzip");
    }
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token);
    }
    let length = u32::try_from(message.bytes.len()).expect("short").to_be_bytes();
    let body = [&[u8::from(message.is_packed)][..], &length, &message.bytes].concat();
    let request = request.body(Full::new(Bytes::from(body))).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.expect("an end").trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or(head.headers.get("grpc-status"));
    status.expect("a status").to_str().expect("a text").parse().expect("a number")
}

struct Message {
    is_packed: bool,
    bytes: Vec<u8>,
}

impl Message {
    fn plain(bytes: &[u8]) -> Self {
        Self { is_packed: false, bytes: bytes.to_vec() }
    }

    fn packed(bytes: &[u8]) -> Self {
        Self { is_packed: true, bytes: gzip(bytes) }
    }
}

#[tokio::test]
async fn a_message_is_bounded_and_needs_a_token_before_it_is_decoded() {
    let (address, _server) = grpc_server(guarded()).await;
    let service = "inference.GRPCInferenceService";
    let infer = format!("{service}/ModelInfer");
    // Two bytes each, and hundreds once they are decoded: inputs, outputs, parameters, raw tensors.
    for field in [0x2a, 0x32, 0x22, 0x3a] {
        let many = [field, 0].repeat(4 << 20);
        let status = call(address, &infer, None, Message::packed(&many)).await;
        assert_eq!(status, UNAUTHENTICATED, "field {field:#x}");
        for message in [Message::packed(&many), Message::plain(&many)] {
            let status = call(address, &infer, Some(TOKEN), message).await;
            assert_eq!(status, RESOURCE_EXHAUSTED, "field {field:#x}");
        }
    }
    // A bomb, and a message that says to be one.
    let bomb = Message::packed(&vec![0; 64 << 20]);
    assert_eq!(call(address, &infer, Some(TOKEN), bomb).await, RESOURCE_EXHAUSTED);
    let stream = format!("{service}/ModelStreamInfer");
    for path in [&infer, &stream] {
        for pack in [Message::plain, Message::packed] {
            let large = pack(&vec![0; (16 << 20) + 1]);
            let status = call(address, path, Some(TOKEN), large).await;
            assert_eq!(status, RESOURCE_EXHAUSTED, "{path}");
        }
    }
    let load = format!("{service}/RepositoryModelLoad");
    let many = Message::packed(&[0x1a, 0].repeat(4 << 20));
    assert_eq!(call(address, &load, Some(TOKEN), many).await, RESOURCE_EXHAUSTED);
}

#[tokio::test]
async fn streams_and_names_need_a_token_over_grpc() {
    let (address, _server) = grpc_server(guarded()).await;
    let service = |name: &str| format!("inference.GRPCInferenceService/{name}");
    let text = b"\x0a\x04text";
    for name in ["ModelStreamInfer", "ModelReady", "ModelMetadata", "ServerMetadata"] {
        for (token, expected) in [(None, UNAUTHENTICATED), (Some(TOKEN), OK)] {
            let message = if name == "ServerMetadata" { &b""[..] } else { &text[..] };
            let status = call(address, &service(name), token, Message::plain(message)).await;
            assert_eq!(status, expected, "{name}");
        }
    }
    for name in ["ServerLive", "ServerReady"] {
        assert_eq!(call(address, &service(name), None, Message::plain(b"")).await, OK);
    }
    // The states are told once the server runs.
    let health = "grpc.health.v1.Health/Check";
    let known =
        async { while call(address, health, Some(TOKEN), Message::plain(text)).await != OK {} };
    timeout(PATIENCE, known).await.expect("the model's health");
    assert_eq!(call(address, health, None, Message::plain(text)).await, NOT_FOUND);
    assert_eq!(call(address, health, None, Message::plain(b"")).await, OK);
}

/// Sends a request whose body comes after its answer, and returns the answer's status. The
/// connection must go on.
async fn status_of(address: SocketAddr, head: &str) -> u16 {
    let body = text_request(serde_json::json!({})).to_string();
    let mut connection = TcpStream::connect(address).await.expect("connected");
    let start = format!("{head}host: x\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all(start.as_bytes()).await.expect("sent");
    let mut answer = vec![0; 4096];
    let length = connection.read(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
    assert!(!answer.contains("connection: close"), "{head}: {answer}");
    let next = "GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    connection.write_all((body + next).as_bytes()).await.expect("sent");
    let mut rest = String::new();
    connection.read_to_string(&mut rest).await.expect("the next answer");
    assert!(rest.contains("{\"live\":true}"), "{head}: {rest}");
    status.unwrap_or_else(|| panic!("{head}: {answer}"))
}

#[tokio::test]
async fn a_connection_goes_on_after_an_error_that_came_before_the_body() {
    let (guarded, _server) = http_server(guarded()).await;
    let post = |path: &str, token: &str| {
        format!("POST {path} HTTP/1.1\r\nauthorization: Bearer {token}\r\n")
    };
    let alice = |path: &str| post(path, "a token of alice");
    for (status, head) in [
        (401, post("/v2/models/text/infer", "wrong")),
        (401, post("/v1/embeddings", "wrong")),
        (401, post("/nowhere", "wrong")),
        (404, alice("/nowhere")),
        (404, alice("/v2/models/none/infer")),
        (404, alice("/v2/models/text/versions/2/infer")),
        (404, alice("/v2/models/none/plan")),
        (405, alice("/v2/models/text")),
        (405, alice("/v2/health/live")),
        (415, alice("/v2/models/text/infer") + "content-encoding: zstd\r\n"),
    ] {
        assert_eq!(status_of(guarded, &head).await, status, "{head}");
    }
    let bob = post("/nowhere", "a token of bob's");
    assert_eq!(status_of(guarded, &bob).await, 404);
    // He may ask once a second, which is enough for few machines to ask twice.
    let refused = async { while status_of(guarded, &bob).await != 429 {} };
    timeout(PATIENCE, refused).await.expect("he asks too often");

    let failed = FamilyState::Failed { reason: "secret".to_owned() };
    let registry = Registry::new([("image".to_owned(), failed)]);
    let failing = Served::offering(registry, Families::small()).state();
    let (failing, _server) = http_server(failing).await;
    let head = "POST /v2/models/image/infer HTTP/1.1\r\n";
    assert_eq!(status_of(failing, head).await, 503);
}

#[tokio::test]
async fn connections_beyond_those_that_are_refused_at_once_wait_and_are_answered() {
    const MAX_SERVED: usize = 8;
    const MAX_REFUSED: usize = 64;
    let (address, _server) = http_server(state()).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_SERVED + MAX_REFUSED {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    let mut last = TcpStream::connect(address).await.expect("connected");
    last.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    drop(silent.pop().expect("one that is to be refused"));
    let mut answer = String::new();
    let read = timeout(PATIENCE, last.read_to_string(&mut answer)).await;
    read.expect("in time").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503"), "it was not closed unanswered: {answer}");
}

#[tokio::test]
async fn a_large_body_is_refused_before_it_is_asked_for() {
    let (address, _server) = http_server(state()).await;
    let mut connection = TcpStream::connect(address).await.expect("connected");
    let head = "POST /v2/models/text/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\
                content-length: 99999999\r\n\r\n";
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_sends_much_reads_why_it_is_refused() {
    let (address, _server) = http_server(guarded()).await;
    let connection = TcpStream::connect(address).await.expect("connected");
    let (mut reading, mut writing) = connection.into_split();
    let sent = async {
        let length = 12 << 20;
        let head = format!(
            "POST /v2/models/text/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
        );
        writing.write_all(head.as_bytes()).await.expect("sent");
        writing.write_all(&vec![b'x'; length]).await.expect("all of it is taken");
    };
    let mut answer = String::new();
    let (read, ()) = tokio::join!(reading.read_to_string(&mut answer), sent);
    read.expect("no reset");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}
