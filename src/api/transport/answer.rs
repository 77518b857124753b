//! Bodies of answers, which record whether their client takes them.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

use super::activity::{Running, Waiting};

/// Body of an answer; its request runs until the body is dropped.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Body,
    running: Running,
    /// Wait for the client to take more; `None` while the server has nothing more yet.
    waiting: Option<Waiting>,
}

/// Bytes of an answer, which are dropped when they are written. That may be long after they were
/// handed over, if a client's HTTP/2 window has no room for them.
#[derive(Debug)]
pub(super) struct AnswerBytes {
    bytes: Bytes,
    waiting: Waiting,
}

impl AnswerBody {
    /// Creates the body of the answer to the request `running`.
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
