//! `POST /v1/chat/completions`.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{Instrument, debug_span};

use super::{
    answering::{About, Answering},
    fields::{Common, refused, wrong},
    head::{Names, unix_seconds},
    logprobs::ChatLogprobs,
    start::{Asked, Door, not_tokenized},
    stream::{Events, stream},
    texts::Piece,
};
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, off_thread, parse_json},
            bounds::Bounds,
            parameters::ParametersSchema,
        },
        error::ApiError,
        inference::Model,
        state::Shared,
    },
    input::{Chat, Language},
    serve::Grammar,
};

const NAMES: Names =
    Names { id: "chatcmpl", whole: "chat.completion", event: "chat.completion.chunk" };

/// Largest prompt in bytes before it is tokenized, per token of the context.
const BYTES_PER_TOKEN: usize = 64;

/// A request for the next message of a chat.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ChatRequest")]
#[serde(expecting = "a JSON object with `model` and `messages`")]
pub(crate) struct ChatQuestion {
    model: String,
    /// Messages, each with `role` and `content`.
    messages: Vec<Map<String, Value>>,
    /// Most tokens to generate; `max_completion_tokens` is its newer name.
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    /// Whether the probabilities of the tokens are told.
    logprobs: Option<bool>,
    /// Number of alternatives whose probabilities are told.
    top_logprobs: Option<usize>,
    /// Form of the answer: `text`, `json_object` or `json_schema`.
    response_format: Option<ResponseFormat>,
    /// Variables of the template.
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[serde(flatten)]
    #[schemars(with = "ParametersSchema")]
    parameters: Map<String, Value>,
}

/// Form of an answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text {},
    JsonObject {},
    JsonSchema { json_schema: NamedSchema },
}

/// Schema of an answer; its name and description have no effect.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedSchema {
    schema: Option<Value>,
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// Whether the schema is kept; it always is.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl ResponseFormat {
    fn grammar(self) -> Option<Grammar> {
        match self {
            Self::Text {} => None,
            Self::JsonObject {} => Some(Grammar::JsonObject),
            Self::JsonSchema { json_schema } => {
                Some(json_schema.schema.map_or(Grammar::JsonObject, Grammar::JsonSchema))
            }
        }
    }
}

/// The next message of a chat.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatResponse")]
pub(crate) struct ChatAnswer {
    #[serde(flatten)]
    about: About,
    choices: Vec<ChatChoice>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ChatMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// Answers a request for the next message of a chat.
pub(crate) async fn chat(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let question: ChatQuestion =
        off_thread(body.len(), move || parse_json(&body, &Bounds::NO_TENSORS))
            .instrument(debug_span!("decode"))
            .await?;
    let model = Model::find(shared.api.repository.registry(), &question.model, None)?;
    let door = Door::open(model)?;
    let (language, context) = (door.language.clone(), door.model.service.context());
    let (chat, asked) = question.read(arrival);
    let write = move || tokens_of(&language, &chat?, context);
    let prompt = off_thread(usize::MAX, write).instrument(debug_span!("preprocess")).await;
    let answering = door.begin(prompt, asked, &permit, NAMES).await?;
    match answering.form.is_stream {
        true => Ok(stream(answering, ChatEvents)),
        false => whole(answering).await,
    }
}

impl ChatQuestion {
    /// Returns the chat for the template, and the rest of the request.
    fn read(self, arrival: Instant) -> (Result<Chat, ApiError>, Asked) {
        let told = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, None | Some(0)) => Ok(None),
            (false, Some(found)) => Err(wrong("top_logprobs", found, "absent without `logprobs`")),
        };
        let asked = Asked {
            operation: "chat",
            common: self.common,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            logprobs: told.as_ref().ok().copied().flatten(),
            grammar: self.response_format.and_then(ResponseFormat::grammar),
            parameters: self.parameters,
            arrival,
        };
        let messages = match self.messages.is_empty() {
            true => Err(wrong("messages", "empty", "one message or more")),
            false => {
                let messages = self.messages.into_iter().enumerate();
                messages.map(|(index, own)| message(index, own)).collect()
            }
        };
        let chat = told.and(messages).map(|messages| Chat {
            messages,
            add_generation_prompt: true,
            extra: self.chat_template_kwargs.unwrap_or_default(),
            now: i64::try_from(unix_seconds()).unwrap_or(i64::MAX),
            ..Chat::default()
        });
        (chat, asked)
    }
}

/// Checks a message. Content in parts is put together, and a developer counts as the system.
fn message(index: usize, mut message: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let name = |field: &str| format!("messages[{index}].{field}");
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
    let role = match role {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => role,
        _ => {
            let expected = "system, developer, user, assistant or tool";
            return Err(wrong(&name("role"), "another", expected));
        }
    };
    let role = Value::from(role);
    message.insert("role".to_owned(), role);
    let content = match message.get("content") {
        None | Some(Value::Null | Value::String(_)) => return Ok(message),
        Some(Value::Array(parts)) => parts.iter().map(|part| {
            let text = part.get("text").and_then(Value::as_str);
            text.filter(|_| part["type"] == "text")
        }),
        Some(_) => {
            return Err(wrong(
                &name("content"),
                "of another type",
                "a string or an array of parts",
            ));
        }
    };
    let content: Option<String> = content.collect();
    let content = content.ok_or_else(|| {
        wrong(&name("content"), "a part of another type", "parts of the type `text`")
    })?;
    message.insert("content".to_owned(), content.into());
    Ok(message)
}

/// Returns the tokens of a chat.
fn tokens_of(language: &Language, chat: &Chat, context: usize) -> Result<Vec<u32>, ApiError> {
    let template = language.template.as_ref().ok_or_else(|| {
        refused("messages", "the model has no chat template; use /v1/completions".to_owned())
    })?;
    let most = context.saturating_mul(BYTES_PER_TOKEN);
    let prompt = template
        .render(chat, language.coder.special_texts(), most)
        .map_err(|error| refused("messages", error.to_string()))?;
    language.coder.encode_chat(&prompt.text, &prompt.guards).map_err(not_tokenized)
}

async fn whole(mut answering: Answering) -> Result<Response, ApiError> {
    let choice = |index| ChatChoice {
        index,
        message: ChatMessage { role: "assistant", content: String::new(), refusal: None },
        logprobs: answering.form.logprobs.map(|_| ChatLogprobs::default()),
        finish_reason: None,
    };
    let mut choices: Vec<ChatChoice> = (0..answering.num_choices()).map(choice).collect();
    while let Some(piece) = answering.next().await? {
        let choice = &mut choices[piece.index];
        choice.message.content.push_str(&piece.text);
        if let (Some(logprobs), Some(token)) = (&mut choice.logprobs, &piece.token) {
            logprobs.push(&answering.language().coder, token);
        }
        choice.finish_reason = piece.reason().or(choice.finish_reason);
    }
    Ok(Json(ChatAnswer { about: answering.about(), choices }).into_response())
}

/// Choices of a chat's events.
struct ChatEvents;

impl Events for ChatEvents {
    fn first(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn choice(&mut self, answering: &Answering, piece: &Piece) -> Option<Value> {
        let told = piece.token.as_ref().filter(|_| answering.form.logprobs.is_some());
        if piece.text.is_empty() && piece.finish.is_none() && told.is_none() {
            return None;
        }
        let logprobs = told.map(|token| {
            let mut logprobs = ChatLogprobs::default();
            logprobs.push(&answering.language().coder, token);
            logprobs
        });
        let delta = match piece.text.is_empty() {
            true => json!({}),
            false => json!({"content": piece.text}),
        };
        Some(json!({"index": piece.index, "delta": delta, "logprobs": logprobs,
                    "finish_reason": piece.reason()}))
    }
}
