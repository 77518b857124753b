//! `ModelStreamInfer`: the messages of a stream and their answers.
//!
//! Requests to models that generate are answered beside each other, since each has several answers;
//! others one after another. If the client leaves, all of them end.

use std::sync::Arc;

use serde_json::Map;
use tokio::{
    sync::mpsc::{Sender, channel},
    task::{JoinError, JoinSet},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::Status;
use tracing::{Instrument, Span, debug_span, field::Empty};

use super::{
    codec::encoded::{Encoded, Envelope},
    infer::{Written, encode, write},
    status::status_of,
};
use crate::{
    api::{
        answers::{Answers, TextAnswers},
        codec::{body::off_thread, encode::report_parameters},
        error::ApiError,
        triton::{
            generate::answer::Part,
            messages::{
                InferParameter, ModelInferResponse, ModelStreamInferResponse,
                infer_parameter::ParameterChoice,
            },
        },
    },
    tensor::chain,
};

/// Most requests of a stream to models that generate that are answered at a time; further messages
/// are not read.
const MAX_BESIDE: usize = 64;

/// Number of responses that wait for a client; texts' own events wait before them.
const WAITING: usize = 16;

/// Parameter that says whether no more responses to a request follow.
const FINAL: &str = "triton_final_response";

/// Source of answers to the messages of a stream.
pub(super) trait Asking: Send + Sync + 'static {
    /// Returns whether `message` is for a model that generates.
    fn has_text(&self, message: &Encoded) -> bool;

    /// Answers a message.
    fn answers(&self, message: Encoded) -> impl Future<Output = Result<Answers, ApiError>> + Send;
}

/// Item of the stream of responses.
type Item = Result<ModelStreamInferResponse, Status>;

/// Returns the responses to `messages`.
pub(super) fn stream<M>(asking: impl Asking, messages: M) -> ReceiverStream<Item>
where
    M: Stream<Item = Result<Encoded, Status>> + Send + Unpin + 'static,
{
    let (sender, receiver) = channel(WAITING);
    let span = Span::current();
    let work = async move {
        let responses = sender.clone();
        tokio::select! {
            answered = answer_all(Arc::new(asking), messages, responses) => {
                if let Err(status) = answered {
                    drop(sender.send(Err(status)).await);
                }
            }
            () = sender.closed() => {}
        }
    };
    tokio::spawn(work.instrument(span));
    ReceiverStream::new(receiver)
}

/// Answers all messages. Fails on one that cannot be read, and when the answer to one panics.
async fn answer_all<M>(
    asking: Arc<impl Asking>,
    mut messages: M,
    responses: Sender<Item>,
) -> Result<(), Status>
where
    M: Stream<Item = Result<Encoded, Status>> + Send + Unpin,
{
    let mut texts = JoinSet::new();
    loop {
        let message = tokio::select! {
            message = messages.next(), if texts.len() < MAX_BESIDE => message,
            Some(ended) = texts.join_next() => {
                ended.map_err(|error| lost(&error))?;
                continue;
            }
        };
        let Some(message) = message.transpose()? else { break };
        let has_text = asking.has_text(&message);
        let span = tracing::info_span!("message", model = Empty, plan = Empty);
        let work = answer(asking.clone(), message, responses.clone()).instrument(span);
        match has_text {
            true => drop(texts.spawn(work)),
            false => {
                let mut one = JoinSet::new();
                one.spawn(work);
                one.join_next().await.unwrap_or(Ok(())).map_err(|error| lost(&error))?;
            }
        }
    }
    while let Some(ended) = texts.join_next().await {
        ended.map_err(|error| lost(&error))?;
    }
    Ok(())
}

/// Returns the status of a stream whose answer ended without a result.
fn lost(error: &JoinError) -> Status {
    tracing::error!(error = chain(error), "the answer to a message of a stream panicked");
    Status::internal("internal error")
}

/// Sends the responses to a message.
async fn answer(asking: Arc<impl Asking>, message: Encoded, responses: Sender<Item>) {
    let Envelope { id, .. } = message.open().unwrap_or_default();
    let sent = async {
        match asking.answers(message).await? {
            Answers::One(answer) => {
                let encoded = off_thread(answer.num_bytes(), move || encode(*answer));
                let mut response = encoded.instrument(debug_span!("encode")).await?;
                mark(&mut response, true);
                drop(responses.send(Ok(answered(response))).await);
            }
            Answers::Text(text) => send_text(*text, &responses).await?,
        }
        Ok(())
    };
    let sent: Result<(), ApiError> = sent.await;
    match sent {
        Ok(()) => tracing::debug!("answered"),
        Err(error) => {
            tracing::debug!(error = error.shortened(), "refused");
            let mut response = ModelInferResponse { id, ..ModelInferResponse::default() };
            mark(&mut response, true);
            let error_message = status_of(&error).message().to_owned();
            let response =
                ModelStreamInferResponse { error_message, infer_response: Some(response) };
            drop(responses.send(Ok(response)).await);
        }
    }
}

/// Sends a response for each piece of text.
async fn send_text(mut text: TextAnswers, responses: &Sender<Item>) -> Result<(), ApiError> {
    while let Some(Part { outputs, report }) = text.next().await? {
        let is_last = report.is_some();
        let parameters = match &report {
            Some(report) => report_parameters(report, false)?,
            None => Map::new(),
        };
        let written = Written { heading: text.heading().clone(), parameters, outputs };
        let mut response = write(written, text.wanted())?;
        mark(&mut response, is_last && !text.has_empty_final);
        if responses.send(Ok(answered(response))).await.is_err() {
            return Ok(());
        }
    }
    if text.has_empty_final {
        let heading = text.heading().clone();
        let (parameters, outputs) = (Map::new(), Vec::new());
        let mut response = write(Written { heading, parameters, outputs }, text.wanted())?;
        mark(&mut response, true);
        drop(responses.send(Ok(answered(response))).await);
    }
    Ok(())
}

/// Says in `response` whether it is the last one to its request.
fn mark(response: &mut ModelInferResponse, is_final: bool) {
    let parameter_choice = Some(ParameterChoice::BoolParam(is_final));
    response.parameters.insert(FINAL.to_owned(), InferParameter { parameter_choice });
}

fn answered(response: ModelInferResponse) -> ModelStreamInferResponse {
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
