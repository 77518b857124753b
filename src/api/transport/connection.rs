//! One connection, from its handshake to its end.

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use hyper::{body::Incoming, rt, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{
    Protocol, Tls,
    activity::{Activity, Overdue, Patience},
    answer::AnswerBody,
    arriving::supervise,
    limits::Limits,
};

/// Time that an idle connection may stay open after it is told to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Message for a connection that is closed because its client does not read.
const UNREAD: &str = "an answer was not taken in time";

/// Longest time between two pings of an HTTP/2 connection; one without an answer is closed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Most bytes of a request's head over HTTP/2.
const MAX_HEAD_BYTES: u32 = 32 << 10;

/// Most headers of a request over HTTP/1.
const MAX_HEADERS: usize = 100;

/// Most bytes that HTTP/1 reads at once; this limits the head as well.
const MAX_READ_BYTES: usize = 256 << 10;

/// Settings that the connections of a port share.
#[derive(Debug)]
pub(super) struct Connections {
    builder: auto::Builder<TokioExecutor>,
    protocol: Protocol,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
}

impl Connections {
    pub(super) fn new(
        protocol: Protocol,
        limits: &Limits,
        tls: Option<Arc<Tls>>,
        shutdown: CancellationToken,
    ) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // `Activity` handles a head that does not arrive, in every protocol.
        builder
            .http1()
            .header_read_timeout(None)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_READ_BYTES)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .max_concurrent_streams(limits.max_streams)
            .max_header_list_size(MAX_HEAD_BYTES);
        if protocol == Protocol::Grpc {
            builder = builder.http2_only();
        }
        Self { builder, protocol, tls, shutdown }
    }

    /// Serves a connection until it ends, is idle or unread for too long, or the server stops.
    pub(super) async fn serve(&self, stream: TcpStream, router: Router, patience: Patience) {
        let activity = Arc::new(Activity::new());
        let answering = Answering { router, activity };
        let ended = match &self.tls {
            None => self.speak(TokioIo::new(stream), answering, patience).await,
            Some(tls) => {
                let handshake = tls.acceptor(self.protocol).accept(stream);
                match tokio::time::timeout(patience.first, handshake).await {
                    Ok(Ok(stream)) => self.speak(TokioIo::new(stream), answering, patience).await,
                    Ok(Err(error)) => Err(error.into()),
                    Err(late) => Err(late.into()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(protocol = self.protocol.name(), %error, "a connection broke");
        }
    }

    async fn speak<I>(
        &self,
        io: I,
        answering: Answering,
        patience: Patience,
    ) -> Result<(), Box<dyn Error + Send + Sync>>
    where
        I: rt::Read + rt::Write + Unpin + Send + 'static,
    {
        let activity = answering.activity.clone();
        let mut connection = std::pin::pin!(self.builder.serve_connection(io, answering));
        tokio::select! {
            result = connection.as_mut() => return result,
            () = self.shutdown.cancelled() => {}
            overdue = activity.overdue(patience) => {
                if overdue == Overdue::Unread {
                    return Err(UNREAD.into());
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        let farewell = Patience { first: FAREWELL, idle: FAREWELL, ..patience };
        tokio::select! {
            result = connection => result,
            overdue = activity.overdue(farewell) => match overdue {
                Overdue::Idle => Ok(()),
                Overdue::Unread => Err(UNREAD.into()),
            },
        }
    }
}

/// Service that answers the requests of a connection.
#[derive(Debug, Clone)]
struct Answering {
    router: Router,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Answering {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let running = self.activity.begin();
        let (request, unanswered) = supervise(request);
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Box::pin(async move {
            let Ok(mut response) = answer.await;
            unanswered.settle(&mut response);
            Ok(response.map(|body| AnswerBody::new(body, running)))
        })
    }
}

type Answer = std::pin::Pin<
    Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send + 'static>,
>;

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use bytes::Bytes;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        time::{Instant, sleep},
    };

    use super::*;

    const PATIENCE: Patience = Patience {
        first: Duration::from_secs(2),
        idle: Duration::from_secs(60),
        unread: Duration::from_secs(30),
    };

    /// Number of bytes of the long answer.
    const LONG: usize = 1 << 20;

    /// Returns a client, and the serving of its connection; `capacity` bytes fit in either
    /// direction.
    fn connect(
        protocol: Protocol,
        capacity: usize,
    ) -> (DuplexStream, impl Future<Output = String>) {
        let limits = Limits {
            max_connections: 1,
            max_streams: 8,
            header_timeout: PATIENCE.first,
            idle_timeout: PATIENCE.idle,
            write_timeout: PATIENCE.unread,
            drain_timeout: PATIENCE.idle,
        };
        let router = Router::new()
            .route("/short", get(|| async { "short" }))
            .route("/long", get(|| async { vec![b'x'; LONG] }))
            .route("/endless", get(|| async { Body::new(Endless) }))
            .route("/refused", post(|| async { "refused" }))
            .route("/read", post(|body: Bytes| async move { body.len().to_string() }));
        let connections = Connections::new(protocol, &limits, None, CancellationToken::new());
        let (client, server) = tokio::io::duplex(capacity);
        let served = async move {
            let activity = Arc::new(Activity::new());
            let answering = Answering { router, activity };
            match connections.speak(TokioIo::new(server), answering, PATIENCE).await {
                Ok(()) => "ended".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        (client, served)
    }

    /// Body that never has data.
    struct Endless;

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
            std::task::Poll::Pending
        }
    }

    async fn seconds_until_closed(served: impl Future<Output = String>) -> (u64, String) {
        let start = Instant::now();
        let reason = served.await;
        (start.elapsed().as_secs(), reason)
    }

    /// Returns the start of an HTTP/2 connection with a request for `path`. Answers may have
    /// `window` bytes.
    fn http2(path: &str, window: u32) -> Vec<u8> {
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            let length = u8::try_from(payload.len()).expect("a short frame");
            [&[0, 0, length, kind, flags, 0, 0, 0, stream][..], payload].concat()
        };
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        let field = |name: &str, value: &str| {
            let length = |text: &str| u8::try_from(text.len()).expect("a short text");
            [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
        };
        let pairs = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "x")];
        let head = pairs.map(|(name, value)| field(name, value)).concat();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        [preface, frame(4, 0, 0, &settings), frame(1, 5, 1, &head)].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_without_a_window_hold_no_connection() {
        for protocol in [Protocol::Http, Protocol::Grpc] {
            for path in ["/short", "/long"] {
                let (mut client, served) = connect(protocol, 1 << 16);
                client.write_all(&http2(path, 0)).await.expect("sent");
                let (seconds, reason) = seconds_until_closed(served).await;
                assert_eq!((seconds, reason.as_str()), (30, UNREAD), "{path}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_have_nothing_yet_are_waited_for() {
        let (mut client, served) = connect(Protocol::Http, 1 << 16);
        client.write_all(&http2("/endless", 0)).await.expect("sent");
        let ten_windows = tokio::time::timeout(10 * PATIENCE.unread, served);
        // Only pings without an answer end the connection.
        assert_ne!(ten_windows.await.unwrap_or_default(), UNREAD);
    }

    #[tokio::test(start_paused = true)]
    async fn an_http1_client_that_does_not_read_is_closed() {
        let (mut client, served) = connect(Protocol::Http, 1 << 10);
        client.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let (seconds, reason) = seconds_until_closed(served).await;
        assert_eq!((seconds, reason.as_str()), (30, UNREAD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_gets_its_answer() {
        let (mut client, served) = connect(Protocol::Http, 1 << 10);
        let read = async {
            let request = b"GET /long HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            client.write_all(request).await.expect("sent");
            let (mut part, mut num_read) = (vec![0; 32 << 10], 0);
            loop {
                match client.read_exact(&mut part).await {
                    Ok(count) => num_read += count,
                    Err(_) => return num_read,
                }
                sleep(Duration::from_secs(20)).await;
            }
        };
        let (served, num_read) = tokio::join!(seconds_until_closed(served), read);
        assert!(num_read >= LONG - (32 << 10), "{num_read} bytes were read, {served:?}");
        assert_eq!(served.1, "ended");
    }

    /// Sends a request whose body comes after `delay`, and then another request; returns the
    /// answers.
    async fn send_late(head: &str, body: &[u8], delay: Duration) -> String {
        let (mut client, served) = connect(Protocol::Http, 1 << 20);
        let ask = async {
            client.write_all(head.as_bytes()).await.expect("sent");
            sleep(delay).await;
            drop(client.write_all(body).await);
            drop(client.write_all(b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n").await);
            // The connection ends when it has been idle.
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        tokio::join!(served, ask).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_goes_on_when_a_short_body_comes_after_the_answer() {
        for path in ["/refused", "/none", "/short"] {
            for delay in [0, 5] {
                let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n");
                let answer = send_late(&head, b"123456789", Duration::from_secs(delay)).await;
                assert!(!answer.contains("connection: close"), "{answer}");
                assert!(answer.ends_with("short"), "{path}: {answer}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_will_be_closed_is_said_to_be() {
        let long = format!("content-length: {}\r\n\r\n", MAX_READ_BYTES + 1);
        for rest in [
            &long,
            "transfer-encoding: chunked\r\n\r\n",
            "expect: 100-continue\r\ncontent-length: 9\r\n\r\n",
        ] {
            let head = format!("POST /refused HTTP/1.1\r\nhost: x\r\n{rest}");
            let answer = send_late(&head, b"", Duration::from_secs(1)).await;
            assert!(answer.contains("connection: close\r\n"), "{answer}");
            assert!(!answer.contains("100 Continue"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_read_is_nobody_else_s() {
        let head = "POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n";
        let answer = send_late(head, b"123456789", Duration::from_secs(1)).await;
        assert!(answer.contains("\r\n\r\n9HTTP/1.1 200"), "{answer}");
    }
}
