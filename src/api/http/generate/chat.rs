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
    fields::{Common, wrong},
    head::{Names, unix_seconds},
    logprobs::ChatLogprobs,
    messages::answer::{ChatMessage, delta},
    messages::message,
    messages::tools::{AskedTools, Tool, ToolChoice},
    prompt::begin,
    start::{Asked, Door},
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
    serve::{Grammar, Sampling},
};

const NAMES: Names =
    Names { id: "chatcmpl", whole: "chat.completion", event: "chat.completion.chunk" };

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
    /// Tools that the model may call, up to 128.
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether the answer may have several calls, as it may by default.
    parallel_tool_calls: Option<bool>,
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
    let (chat, asked) = question.read(arrival, &door.language);
    let answering = begin(door, chat, asked, permit, NAMES).await?;
    match answering.form.is_stream {
        true => Ok(stream(answering, ChatEvents)),
        false => whole(answering).await,
    }
}

impl ChatQuestion {
    /// Returns the chat for the template, and the rest of the request.
    fn read(self, arrival: Instant, language: &Language) -> (Result<Chat, ApiError>, Asked) {
        let told = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, Some(found)) if found > Sampling::MAX_LOGPROBS => {
                Err(wrong("top_logprobs", found, "0 to 20"))
            }
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, None | Some(0)) => Ok(None),
            (false, Some(found)) => Err(wrong("top_logprobs", found, "absent without `logprobs`")),
        };
        let asked_tools = AskedTools {
            functions: self.tools.map(|tools| tools.into_iter().map(Tool::into_function).collect()),
            choice: self.tool_choice,
            is_parallel: self.parallel_tool_calls,
        };
        let (tools, shown) = asked_tools.read(language.template.as_ref());
        let asked = Asked {
            operation: "chat",
            common: self.common,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            logprobs: told.as_ref().ok().copied().flatten(),
            best_of: None,
            grammar: self.response_format.and_then(ResponseFormat::grammar),
            tools,
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
        let chat = told.and(shown).and_then(|tools| {
            Ok(Chat {
                messages: messages?,
                tools,
                documents: None,
                add_generation_prompt: true,
                extra: self.chat_template_kwargs.unwrap_or_default(),
                now: i64::try_from(unix_seconds()).unwrap_or(i64::MAX),
            })
        });
        (chat, asked)
    }
}

async fn whole(mut answering: Answering) -> Result<Response, ApiError> {
    let choice = |index| ChatChoice {
        index,
        message: ChatMessage::new(),
        logprobs: answering.form.logprobs.map(|_| ChatLogprobs::default()),
        finish_reason: None,
    };
    let mut choices: Vec<ChatChoice> = (0..answering.num_choices()).map(choice).collect();
    while let Some(piece) = answering.next().await? {
        let choice = &mut choices[piece.index];
        piece.parts.iter().for_each(|part| choice.message.add(part, answering.calls));
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
        if piece.parts.is_empty() && piece.finish.is_none() && told.is_none() {
            return None;
        }
        let logprobs = told.map(|token| {
            let mut logprobs = ChatLogprobs::default();
            logprobs.push(&answering.language().coder, token);
            logprobs
        });
        let delta = delta(&piece.parts, answering.calls);
        Some(json!({"index": piece.index, "delta": delta, "logprobs": logprobs,
                    "finish_reason": piece.reason()}))
    }
}
