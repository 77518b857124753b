//! Bodies of answers, which tell whether their client takes them.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

use super::activity::{Running, Waiting};

/// Body of an answer, with which its request ends.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    running: Running,
    /// Set while it is for the client to take more; `None` while the server has no more yet.
    waiting: Option<Waiting>,
}

/// Bytes of an answer. They are dropped when they are written, which may be long after they were
/// handed over: a client's HTTP/2 window may have no room for them.
#[derive(Debug)]
pub(super) struct AnswerBytes {
    bytes: Bytes,
    waiting: Waiting,
}

impl AnswerBody {
    /// Lets the request that is `running` end with `body`.
    pub(super) fn new(body: Body, running: Running) -> Self {
        let waiting = Some(running.wait());
        Self { body, running, waiting }
    }

    fn hand_over(&self, frame: Frame<Bytes>) -> Frame<AnswerBytes> {
        frame.map_data(|bytes| AnswerBytes { bytes, waiting: self.running.wait() })
    }
}

impl HttpBody for AnswerBody {
    type Data = AnswerBytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<AnswerBytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.waiting = match polled {
            Poll::Ready(Some(Ok(_))) => Some(self.running.wait()),
            Poll::Ready(_) | Poll::Pending => None,
        };
        polled.map(|next| next.map(|frame| frame.map(|frame| self.hand_over(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Buf for AnswerBytes {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.waiting.take(count);
    }
}
