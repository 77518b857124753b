//! `POST /v2/models/{model}/generate` and `/generate_stream`, Triton's extension for text.

use std::{borrow::Cow, time::Instant};

use axum::{Extension, Json, response::Response};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{Instrument, debug_span};

use super::{
    fields::wrong,
    start::Door,
    stream::{event, respond},
};
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, off_thread},
            bounded::MAX_PARAMETERS,
            bounds::check,
            encode::WireData,
            object::{JsonObject, Untaken},
        },
        error::ApiError,
        inference::Model,
        layers::TimeLimit,
        triton::generate::{
            answer::{Part, TextAnswer},
            question::{Question, SettingsSchema},
            tensors::add,
        },
    },
    serve::ServeError,
};

/// Content type of events, as Triton writes it.
const EVENTS: &str = "text/event-stream; charset=utf-8";

/// A request for text. Keys of sampling and budgets stand in `parameters` or beside it.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "GenerateRequest")]
pub(crate) struct GenerateQuestion {
    #[schemars(flatten)]
    own: GenerateFields,
    #[schemars(flatten, with = "SettingsSchema")]
    untaken: Untaken,
}

/// Fields beside the keys of sampling and budgets.
#[derive(Debug, Deserialize, JsonSchema)]
struct GenerateFields {
    /// Text to continue.
    text_input: String,
    /// Id that the answer repeats.
    id: Option<String>,
    #[schemars(with = "Option<SettingsSchema>")]
    parameters: Option<Map<String, Value>>,
}

/// An answer, or a part of one.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "GenerateResponse")]
pub(crate) struct GenerateAnswer {
    model_name: String,
    model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    outputs: Outputs,
    /// Report of how the request was answered; absent while parts follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    tessera: Option<Value>,
}

/// Outputs by name: a value each, or an array if there are several answers.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Outputs(Map<String, Value>);

impl JsonSchema for Outputs {
    fn schema_name() -> Cow<'static, str> {
        "GeneratedOutputs".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let texts = || json_schema!({"type": ["string", "array"], "items": {"type": "string"}});
        let numbers = |kind: &str| json_schema!({"type": [kind, "array"], "items": {"type": kind}});
        json_schema!({
            "type": "object",
            "properties": {
                "text_output": texts(),
                "finish_reason": texts(),
                "cumulative_logprob": numbers("number"),
                "logprobs": texts(),
                "num_input_tokens": numbers("integer"),
                "num_output_tokens": numbers("integer"),
            },
            "required": ["text_output"],
        })
    }
}

/// Fields of every part of an answer.
#[derive(Debug)]
struct Heading {
    model_name: String,
    model_version: String,
    id: Option<String>,
}

/// Answers a request for text as a whole.
pub(crate) async fn generate(
    model: Model,
    Extension(permit): Extension<Permit>,
    Extension(limit): Extension<TimeLimit>,
    Body(body): Body,
) -> Result<Json<GenerateAnswer>, ApiError> {
    let (mut answer, heading) =
        begin(Asked { model, permit, limit, body, is_stream: false }).await?;
    let part = answer.next().await?;
    let part = part.ok_or(ServeError::Broken { what: "a generated answer has no end" })?;
    Ok(Json(heading.written(part, &answer)?))
}

/// Answers a request for text as events. The status is that of the first part.
pub(crate) async fn generate_stream(
    model: Model,
    Extension(permit): Extension<Permit>,
    Extension(limit): Extension<TimeLimit>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let (mut answer, heading) =
        begin(Asked { model, permit, limit, body, is_stream: true }).await?;
    let mut next: Result<_, ServeError> = Ok(answer.next().await?);
    Ok(respond(EVENTS, move |sender| async move {
        loop {
            let written = match next {
                Ok(Some(part)) => heading.written(part, &answer),
                Ok(None) => return,
                Err(error) => Err(error.into()),
            };
            let is_broken = written.is_err();
            let event = written.map_or_else(|error| failure(&error), |part| event(&part));
            if sender.send(event).await.is_err() || is_broken {
                return;
            }
            next = tokio::select! {
                next = answer.next() => next,
                () = sender.closed() => return,
            };
        }
    }))
}

/// A request as it arrived.
struct Asked {
    model: Model,
    permit: Permit,
    limit: TimeLimit,
    body: bytes::Bytes,
    /// Whether the route answers with events.
    is_stream: bool,
}

/// Reads a request and begins its answer.
async fn begin(asked: Asked) -> Result<(TextAnswer, Heading), ApiError> {
    let Asked { model, permit, limit, body, is_stream } = asked;
    let arrival = Instant::now();
    let (model_name, model_version) = (model.service.name().to_owned(), model.version.clone());
    let door = Door::open(model, limit)?;
    let read =
        off_thread(body.len(), move || GenerateQuestion::parse(&body)?.read(is_stream, arrival));
    let (door, (question, id)) = door.accept(read.instrument(debug_span!("decode")).await)?;
    let answer = TextAnswer::begin(door, question, &permit).await?;
    Ok((answer, Heading { model_name, model_version, id }))
}

impl GenerateQuestion {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut object = JsonObject::parse(body)?;
        Ok(Self { own: object.take()?, untaken: object.rest() })
    }

    /// Returns the request with its id. A route that answers with events has a stream, unless the
    /// request says otherwise.
    fn read(
        self,
        is_stream: bool,
        arrival: Instant,
    ) -> Result<(Question, Option<String>), ApiError> {
        let GenerateFields { text_input, id, parameters } = self.own;
        let mut keys = self.untaken.fields;
        add(&mut keys, parameters.into_iter().flatten())?;
        check("the number of parameters", keys.len(), MAX_PARAMETERS)?;
        if is_stream {
            keys.entry("stream").or_insert(Value::Bool(true));
        }
        let question = Question::new(text_input, keys, arrival)?;
        if question.is_stream() && !is_stream {
            return Err(wrong("stream", true, "false or absent here; /generate_stream streams"));
        }
        Ok((question, id))
    }
}

impl Heading {
    /// Writes a part of `answer`.
    fn written(&self, part: Part, answer: &TextAnswer) -> Result<GenerateAnswer, ApiError> {
        let outputs = part.outputs.iter().map(|(name, tensor)| {
            let written = serde_json::to_value(WireData(tensor.data()));
            let mut values =
                written.map_err(|source| ApiError::Encode { source: source.into() })?;
            let alone = values.as_array_mut().filter(|values| values.len() == 1);
            let alone = alone.and_then(Vec::pop);
            Ok((name.clone(), alone.unwrap_or(values)))
        });
        Ok(GenerateAnswer {
            model_name: self.model_name.clone(),
            model_version: self.model_version.clone(),
            id: self.id.clone(),
            outputs: Outputs(outputs.collect::<Result<_, ApiError>>()?),
            tessera: part.report.map(|_| answer.plan_report()),
        })
    }
}

/// Returns the event of a failure. The status has been sent already.
fn failure(error: &ApiError) -> String {
    event(&json!({"error": error.message()}))
}
