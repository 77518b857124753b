//! Responses as server-sent events.

use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use super::{
    super::{answering::Answering, stream::respond},
    output::{Output, ResponseAnswer, Status},
};
use crate::{api::error::ApiError, serve::Finish};

/// Event that has the whole response.
#[derive(Serialize)]
struct OfResponse<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    response: &'a ResponseAnswer,
    sequence_number: u64,
}

/// Events of a response, in their order.
struct Events {
    sender: Sender<String>,
    next: u64,
}

impl Events {
    /// Sends the response as an event. Returns whether the client is there.
    async fn send_response(&mut self, kind: &'static str, response: &ResponseAnswer) -> bool {
        let event = OfResponse { kind, response, sequence_number: self.next };
        // Strings and numbers can always be written.
        let json = serde_json::to_string(&event).unwrap_or_default();
        self.send(kind, &json).await
    }

    /// Sends events of items. Returns whether the client is there.
    async fn send_all(&mut self, events: Vec<Value>) -> bool {
        for mut event in events {
            event["sequence_number"] = json!(self.next);
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            if !self.send(&kind, &event.to_string()).await {
                return false;
            }
        }
        true
    }

    async fn send(&mut self, kind: &str, json: &str) -> bool {
        self.next += 1;
        self.sender.send(format!("event: {kind}\ndata: {json}\n\n")).await.is_ok()
    }
}

/// Returns the response as a stream of events. If the client leaves, the sequence ends at the next
/// step.
pub(super) fn stream(answering: Answering, answer: ResponseAnswer) -> Response {
    respond("text/event-stream", |sender| run(Events { sender, next: 0 }, answering, answer))
}

/// Sends all events, as long as the client is there.
async fn run(mut events: Events, mut answering: Answering, mut answer: ResponseAnswer) {
    for kind in ["response.created", "response.in_progress"] {
        if !events.send_response(kind, &answer).await {
            return;
        }
    }
    let mut output = Output::new(answering.calls);
    let mut finish = Finish::Stop;
    loop {
        let next = tokio::select! {
            next = answering.next() => next,
            () = events.sender.closed() => return,
        };
        match next {
            Ok(Some(piece)) => {
                piece.parts.iter().for_each(|part| output.add(part));
                finish = piece.finish.unwrap_or(finish);
            }
            Ok(None) => break,
            Err(error) => {
                // The status has been sent already.
                answer.fail(ApiError::from(error).message());
                events.send_response(Status::Failed.event(), &answer).await;
                return;
            }
        }
        if !events.send_all(output.take_events()).await {
            return;
        }
    }
    let status = Status::of(finish);
    output.end(status);
    if events.send_all(output.take_events()).await {
        answer.end(status, output.into_items(), &answering);
        events.send_response(status.event(), &answer).await;
    }
}
