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
    activity::{Activity, Patience, RunningBody},
    server::Limits,
};

/// How long a connection that is told to end, and has nothing to do, may stay.
const FAREWELL: Duration = Duration::from_secs(1);

/// The longest time between two pings of an HTTP/2 connection; one without an answer is closed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The most bytes of a request's head over HTTP/2.
const MAX_HEAD_BYTES: u32 = 32 << 10;

/// The most headers of a request over HTTP/1.
const MAX_HEADERS: usize = 100;

/// The most bytes that HTTP/1 reads at once, which limits the head as well.
const MAX_READ_BYTES: usize = 256 << 10;

/// What the connections of a port have in common.
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
        // A head that does not come is the affair of `Activity`, whatever is spoken.
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

    /// Serves a connection until it ends, is idle for too long, or the server stops.
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
            () = activity.is_overdue(patience) => {}
        }
        connection.as_mut().graceful_shutdown();
        let farewell = Patience { first: FAREWELL, idle: FAREWELL };
        tokio::select! {
            result = connection => result,
            () = activity.is_overdue(farewell) => Ok(()),
        }
    }
}

/// Answers the requests of a connection.
#[derive(Debug, Clone)]
struct Answering {
    router: Router,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Answering {
    type Response = Response<RunningBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let running = self.activity.begin();
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Box::pin(async move {
            let Ok(response) = answer.await;
            Ok(response.map(|body| running.with(body)))
        })
    }
}

type Answer = std::pin::Pin<
    Box<dyn Future<Output = Result<Response<RunningBody>, Infallible>> + Send + 'static>,
>;
