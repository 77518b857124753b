//! Bodies of requests that are answered before they have arrived.
//!
//! A client may still be sending when its answer comes, such as a refusal. It reads the answer only
//! if the connection stays open for as long. So the rest of a body is read and thrown away, within
//! bounds. If the rest may be too much, the answer says that the connection will be closed.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::HttpBody,
    http::{HeaderValue, Request, Response, Version, header},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;

/// Most bytes left of a body with which an HTTP/1 connection goes on.
const MAX_KEPT_BYTES: u64 = 256 << 10;

/// Most bytes of a body that are thrown away; a connection that sends more is closed.
const MAX_DRAINED_BYTES: usize = 64 << 20;

/// Time for the rest of a body to arrive.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Body of a request. If it is dropped before its end, the rest is thrown away once the request is
/// answered.
#[derive(Debug)]
pub(super) struct ArrivingBody<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> {
    /// The body; `None` once this is dropped.
    body: Option<B>,
    is_over: bool,
    rest: Arc<Mutex<Rest<B>>>,
}

/// Rest of the body of a request that is being answered.
#[derive(Debug)]
pub(super) struct Unanswered<B> {
    rest: Arc<Mutex<Rest<B>>>,
    version: Version,
    /// Whether the client waits to be asked for the body (`Expect: 100-continue`).
    expects_continue: bool,
}

/// State of a body.
#[derive(Debug)]
enum Rest<B> {
    /// The body is being read.
    Read,
    /// The body is no longer read, and the request is not answered yet.
    Left(B),
    /// The request is answered.
    Answered,
}

/// Wraps the body of a request, so that its rest can be handled after the answer.
pub(super) fn supervise<B>(request: Request<B>) -> (Request<ArrivingBody<B>>, Unanswered<B>)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    let rest = Arc::new(Mutex::new(Rest::Read));
    let expect = request.headers().get(header::EXPECT);
    let unanswered = Unanswered {
        rest: rest.clone(),
        version: request.version(),
        expects_continue: expect.is_some(),
    };
    let request =
        request.map(|body| ArrivingBody { is_over: body.is_end_stream(), body: Some(body), rest });
    (request, unanswered)
}

impl<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> Unanswered<B> {
    /// Handles the rest of the body, now that the request is answered.
    pub(super) fn settle<T>(self, response: &mut Response<T>) {
        let left = std::mem::replace(&mut *lock(&self.rest), Rest::Answered);
        let Rest::Left(body) = left else {
            return;
        };
        let num_left = body.size_hint().exact();
        let is_short = num_left.is_some_and(|left| left <= MAX_KEPT_BYTES);
        if self.version < Version::HTTP_2 && (self.expects_continue || !is_short) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        // Reading the body would ask for it, and a client that waits for that must not be asked.
        if !self.expects_continue {
            throw_away(body);
        }
    }
}

fn lock<B>(rest: &Mutex<Rest<B>>) -> MutexGuard<'_, Rest<B>> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a body to its end in the background, within the bounds, and throws it away.
fn throw_away<B: HttpBody<Data = Bytes> + Send + Unpin + 'static>(body: B) {
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    runtime.spawn(tokio::time::timeout(DRAIN_TIMEOUT, drain(body)));
}

async fn drain<B: HttpBody<Data = Bytes> + Unpin>(mut body: B) {
    let mut num_drained = 0;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        num_drained += frame.data_ref().map_or(0, Bytes::len);
        if num_drained > MAX_DRAINED_BYTES {
            return;
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> HttpBody for ArrivingBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        self.is_over |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> Drop for ArrivingBody<B> {
    fn drop(&mut self) {
        if self.is_end_stream() {
            return;
        }
        let Some(body) = self.body.take() else {
            return;
        };
        let mut rest = lock(&self.rest);
        if matches!(*rest, Rest::Answered) {
            drop(rest);
            throw_away(body);
        } else {
            *rest = Rest::Left(body);
        }
    }
}
