//! Answers as server-sent events.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::answering::{Answering, Piece};
use crate::{api::error::ApiError, serve::ServeError};

/// Number of events that wait for a client; the sequences' own events wait before them.
pub(super) const WAITING: usize = 16;

/// Choices of a protocol's events.
pub(super) trait Events: Send + 'static {
    /// Returns the choice of the event before the first token of choice `index`, if there is one.
    fn first(&self, index: usize) -> Option<Value>;

    /// Returns the choice of a part; `None` if the part tells nothing.
    fn choice(&mut self, answering: &Answering, piece: &Piece) -> Option<Value>;
}

fn event<T: Serialize>(value: &T) -> String {
    // Strings and numbers can always be written.
    let json = serde_json::to_string(value).unwrap_or_default();
    format!("data: {json}\n\n")
}

/// Returns the event of a part, if it tells something. The last of a choice has its times.
fn part(events: &mut impl Events, answering: &Answering, piece: &Piece) -> Option<String> {
    let choice = events.choice(answering, piece)?;
    let mut chunk = answering.chunk(json!([choice]));
    if piece.finish.is_some() {
        chunk.timings = Some(answering.usage().times);
        chunk.tessera = Some(answering.report());
    }
    Some(event(&chunk))
}

/// Returns the answer as a stream of events. If the client leaves, the sequences end at the next
/// step.
pub(super) fn stream(mut answering: Answering, mut events: impl Events) -> Response {
    let (sender, receiver) = channel::<String>(WAITING);
    tokio::spawn(async move {
        for index in 0..answering.num_choices() {
            if let Some(choice) = events.first(index)
                && sender.send(event(&answering.chunk(json!([choice])))).await.is_err()
            {
                return;
            }
        }
        loop {
            let next = tokio::select! {
                next = answering.next() => next,
                () = sender.closed() => return,
            };
            let event = match next {
                Ok(Some(piece)) => part(&mut events, &answering, &piece),
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
        if answering.form.has_usage {
            let mut chunk = answering.chunk(json!([]));
            chunk.usage = Some(answering.usage().counts);
            if sender.send(event(&chunk)).await.is_err() {
                return;
            }
        }
        drop(sender.send("data: [DONE]\n\n".to_owned()).await);
    });
    sent_events(receiver)
}

/// Returns the answer whose events come from `receiver`.
pub(super) fn sent_events(receiver: Receiver<String>) -> Response {
    let parts = ReceiverStream::new(receiver).map(|event| Ok::<_, Infallible>(Bytes::from(event)));
    let headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")];
    (headers, Body::from_stream(parts)).into_response()
}

/// Returns the event of a failure. The status has been sent already.
fn failure(error: ServeError) -> String {
    event(&ApiError::from(error).openai(""))
}
