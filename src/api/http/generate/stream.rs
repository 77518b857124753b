//! Answers as server-sent events.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::mpsc::channel;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::answering::{Answering, Piece};
use crate::{api::error::ApiError, serve::ServeError};

/// Number of events that wait for a client; the sequences' own events wait before them.
const WAITING: usize = 16;

/// Form of a protocol's events.
pub(super) trait Events: Send + 'static {
    /// Returns the events before the first token.
    fn first(&self, answering: &Answering) -> Vec<String>;

    /// Returns the event of a part.
    fn piece(&mut self, answering: &Answering, piece: &Piece) -> Option<String>;

    /// Returns the event behind the last part, with the usage.
    fn last(&self, answering: &Answering) -> String;
}

/// Returns an event with `value` as its data.
pub(super) fn event<T: Serialize>(value: &T) -> String {
    // Strings and numbers can always be written.
    let json = serde_json::to_string(value).unwrap_or_default();
    format!("data: {json}\n\n")
}

/// Returns the answer as a stream of events. If the client leaves, the sequences end at the next
/// step.
pub(super) fn stream(mut answering: Answering, mut events: impl Events) -> Response {
    let (sender, receiver) = channel::<String>(WAITING);
    tokio::spawn(async move {
        for event in events.first(&answering) {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        loop {
            let next = tokio::select! {
                next = answering.next() => next,
                () = sender.closed() => return,
            };
            let event = match next {
                Ok(Some(piece)) => events.piece(&answering, &piece),
                Ok(None) => break,
                Err(error) => {
                    drop(sender.send(failure(error)).await);
                    return;
                }
            };
            if let Some(event) = event
                && sender.send(event).await.is_err()
            {
                return;
            }
        }
        if answering.form.has_usage && sender.send(events.last(&answering)).await.is_err() {
            return;
        }
        drop(sender.send("data: [DONE]\n\n".to_owned()).await);
    });
    let parts = ReceiverStream::new(receiver).map(|event| Ok::<_, Infallible>(Bytes::from(event)));
    let headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")];
    (headers, Body::from_stream(parts)).into_response()
}

/// Returns the event of a failure. The status has been sent already.
fn failure(error: ServeError) -> String {
    event(&ApiError::from(error).openai(""))
}
