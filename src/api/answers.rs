//! Requests of tensors by any protocol: for outputs of a run, or for text.

use std::time::Instant;

use tracing::{Instrument, debug_span};

use super::{
    codec::{
        body::off_thread,
        bounds::Bounds,
        decode::{Decoded, Parts, RequestedOutputs},
        encode::AnswerHead,
    },
    error::ApiError,
    http::generate::{fields::wrong, start::Door},
    inference::{self, Answer, Call, Model, accept},
    triton::generate::{
        answer::{Part, TextAnswer},
        tensors::{TensorQuestion, generates, is_text},
    },
};
use crate::serve::{InferResponse, ServeError, Ticket};

/// Answers to a request.
#[derive(Debug)]
pub(crate) enum Answers {
    /// One answer, which is there.
    One(Box<Answer>),
    /// One answer for each piece of text.
    Text(Box<TextAnswers>),
}

/// Answers to a request for text.
#[derive(Debug)]
pub(crate) struct TextAnswers {
    answer: TextAnswer,
    heading: AnswerHead,
    wanted: RequestedOutputs,
    /// Whether an answer without outputs is the last.
    pub(crate) has_empty_final: bool,
}

/// A request that is understood.
struct Understood {
    model: Model,
    ticket: Ticket,
    call: Call,
    read: Read,
}

/// Form of a request.
enum Read {
    Tensors(Box<Decoded>),
    Text(Box<TensorQuestion>),
}

/// Answers a request that arrived at `arrival` and whose parts `read` takes from it.
///
/// # Errors
///
/// Fails on a request that the model does not take, and where there is no room for it.
pub(crate) async fn answers(
    model: Model,
    call: Call,
    arrival: Instant,
    read: impl FnOnce(&Bounds) -> Result<Parts, ApiError> + Send + 'static,
) -> Result<Answers, ApiError> {
    understand(model, call, arrival, read).await?.answers().await
}

/// Answers a request with one answer.
///
/// # Errors
///
/// Fails like [`answers`], on a request whose text comes in pieces, and when the generation does.
pub(crate) async fn answer(
    model: Model,
    call: Call,
    arrival: Instant,
    read: impl FnOnce(&Bounds) -> Result<Parts, ApiError> + Send + 'static,
) -> Result<Answer, ApiError> {
    let Understood { model, ticket, call, read } = understand(model, call, arrival, read).await?;
    let (ticket, read) = accept(ticket, in_one(read))?;
    match (Understood { model, ticket, call, read }).answers().await? {
        Answers::One(answer) => Ok(*answer),
        Answers::Text(mut text) => {
            let Part { outputs, report } = text.next().await?.ok_or(NO_END)?;
            let report = report.ok_or(NO_END)?;
            let TextAnswers { heading, wanted, .. } = *text;
            Ok(Answer { heading, response: InferResponse { outputs, report }, wanted })
        }
    }
}

/// Checks that a request has one answer.
fn in_one(read: Read) -> Result<Read, ApiError> {
    match &read {
        Read::Text(text) if text.question.is_stream() => {
            let expected = "false or absent where there is one answer; /generate_stream and \
                            ModelStreamInfer have several";
            Err(wrong("stream", true, expected))
        }
        Read::Text(_) | Read::Tensors(_) => Ok(read),
    }
}

async fn understand(
    model: Model,
    call: Call,
    arrival: Instant,
    read: impl FnOnce(&Bounds) -> Result<Parts, ApiError> + Send + 'static,
) -> Result<Understood, ApiError> {
    let ticket = model.service.arrive();
    let (specs, generates) = (model.specs(), generates(&model));
    let decode = move || {
        let parts = read(&specs.bounds)?;
        match generates && is_text(&parts) {
            true => TensorQuestion::read(parts, arrival).map(Box::new).map(Read::Text),
            false => Decoded::new(parts, &specs, arrival).map(Box::new).map(Read::Tensors),
        }
    };
    let decoded = off_thread(call.num_bytes, decode).instrument(debug_span!("decode"));
    let (ticket, read) = accept(ticket, decoded.await)?;
    Ok(Understood { model, ticket, call, read })
}

impl Understood {
    async fn answers(self) -> Result<Answers, ApiError> {
        let Self { model, ticket, call, read } = self;
        match read {
            Read::Tensors(decoded) => {
                let answer = inference::run(&model, ticket, call, *decoded).await?;
                Ok(Answers::One(Box::new(answer)))
            }
            Read::Text(read) => {
                let TensorQuestion { id, question, wanted, has_empty_final } = *read;
                let (model_name, model_version) =
                    (model.service.name().to_owned(), model.version.clone());
                let heading = AnswerHead { model_name, model_version, id, explain: false };
                let door = Door::open_with(ticket, model)?;
                let answer = TextAnswer::begin(door, question, &call.permit).await?;
                let text = TextAnswers { answer, heading, wanted, has_empty_final };
                Ok(Answers::Text(Box::new(text)))
            }
        }
    }
}

/// Error of an answer that has no last part.
const NO_END: ServeError = ServeError::Broken { what: "a generated answer has no end" };

impl TextAnswers {
    /// Returns the next part with the outputs that the request wants, or `None` after the last.
    ///
    /// # Errors
    ///
    /// Fails when a sequence does.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, ServeError> {
        let mut part = self.answer.next().await?;
        if let Some(part) = &mut part {
            part.outputs.retain(|(name, _)| self.wanted.has(name));
        }
        Ok(part)
    }

    /// Returns the fields of each answer beside its outputs.
    pub(crate) fn heading(&self) -> &AnswerHead {
        &self.heading
    }

    /// Returns the outputs that the request wants, and their form.
    pub(crate) fn wanted(&self) -> &RequestedOutputs {
        &self.wanted
    }
}
