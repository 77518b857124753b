//! Streams without messages; they end after a while, so that they hold no connection.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    http::Response,
    middleware::Next,
};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::time::{Sleep, sleep};

use super::status::{name_too_large, status_of};
use crate::api::error::ApiError;

/// Ends the answers of a call when there was none for `limit`.
pub(super) async fn limit_idle(
    State(limit): State<Duration>,
    request: Request,
    next: Next,
) -> Response<Body> {
    next.run(request)
        .await
        .map(|body| Body::new(IdleBody { body, limit, timer: None, ended: false }))
}

/// Body that ends when it has had no data for `limit`, and whose status has our codes.
struct IdleBody {
    body: Body,
    limit: Duration,
    /// Timer that runs while the body has no data.
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl IdleBody {
    /// Ends the body, and returns the trailers of an idle call.
    fn end(&mut self) -> Frame<Bytes> {
        self.ended = true;
        let status = status_of(&ApiError::IdleStream { limit: self.limit });
        Frame::trailers(status.into_http::<()>().into_parts().0.headers)
    }
}

impl HttpBody for IdleBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(mut frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.timer = None;
            if let Some(Ok(frame)) = &mut frame
                && let Some(trailers) = frame.trailers_mut()
            {
                name_too_large(trailers);
            }
            return Poll::Ready(frame);
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Some(Ok(self.end())))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::Instant;
    use tokio_stream::{StreamExt, iter, pending};
    use tonic::{Code, Status};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_messages_ends_with_a_status() {
        let messages = iter([0, 1, 2]).then(|_| async {
            sleep(LIMIT / 2).await;
            Ok::<_, axum::Error>(Bytes::from_static(b"message"))
        });
        let body = Body::from_stream(messages.chain(pending()));
        let start = Instant::now();
        let body = IdleBody { body, limit: LIMIT, timer: None, ended: false };
        let collected = body.collect().await.expect("an end");
        assert_eq!(start.elapsed().as_secs(), 3 * 150 + 300);
        let trailers = collected.trailers().expect("a status");
        let status = Status::from_header_map(trailers).expect("a status");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("300s"), "{status}");
        assert_eq!(collected.to_bytes(), "message".repeat(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_ends_is_left_alone() {
        let body = IdleBody { body: Body::from("answer"), limit: LIMIT, timer: None, ended: false };
        let collected = body.collect().await.expect("an end");
        assert!(collected.trailers().is_none());
        assert_eq!(collected.to_bytes(), "answer");
    }
}
