//! `POST /v1/responses`: OpenAI's Responses API without what needs a memory.
//!
//! A request is a chat under other names. Nothing is stored, so a request has the whole
//! conversation. Start at [`responses`].

mod events;
mod input;
mod output;
mod parts;
mod question;

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use tracing::{Instrument, debug_span};

use self::output::{Output, Status};
pub(crate) use self::{output::ResponseAnswer, question::ResponseQuestion};
use super::{answering::Answering, head::Names, prompt::begin, start::Door};
use crate::{
    api::{
        access::clients::Permit,
        codec::body::{Body, off_thread},
        error::ApiError,
        inference::Model,
        layers::TimeLimit,
        state::Shared,
    },
    serve::Finish,
};

const NAMES: Names = Names { id: "resp", whole: "response", event: "response" };

/// Answers a request for a response.
pub(crate) async fn responses(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    Extension(limit): Extension<TimeLimit>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let question: ResponseQuestion = off_thread(body.len(), move || ResponseQuestion::parse(&body))
        .instrument(debug_span!("decode"))
        .await?;
    let model = Model::find(shared.api.repository.registry(), question.model(), None)?;
    let door = Door::open(model, limit)?;
    let answer = question.answer(door.model.service.name());
    let (chat, asked) = question.read(arrival, &door.language);
    let answering = begin(door, chat, asked, permit, NAMES).await?;
    match answering.form.is_stream {
        true => Ok(events::stream(answering, answer)),
        false => whole(answering, answer).await,
    }
}

async fn whole(mut answering: Answering, mut answer: ResponseAnswer) -> Result<Response, ApiError> {
    let mut output = Output::new(answering.calls);
    let mut finish = Finish::Stop;
    while let Some(piece) = answering.next().await? {
        piece.parts.iter().for_each(|part| output.add(part));
        finish = piece.finish.unwrap_or(finish);
        output.take_events();
    }
    let status = Status::of(finish);
    output.end(status);
    answer.end(status, output.into_items(), &answering);
    Ok(Json(answer).into_response())
}
