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
    fields::{BudgetsSchema, Common, wrong},
    head::{Names, unix_seconds},
    keys::Keys,
    logprobs::ChatLogprobs,
    messages::{
        self,
        answer::{ChatMessage, delta},
        tools::{AskedTools, Tool, ToolChoice},
    },
    prompt::begin,
    start::{Asked, Door},
    stream::{Events, stream},
    texts::Piece,
};
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, off_thread},
            object::{JsonObject, Untaken},
        },
        error::ApiError,
        inference::Model,
        layers::TimeLimit,
        state::Shared,
    },
    input::{Chat, Language},
    serve::{Grammar, Sampling},
    tensor::json::{object, optional_object},
};

const NAMES: Names =
    Names { id: "chatcmpl", whole: "chat.completion", event: "chat.completion.chunk" };

/// A request for the next message of a chat.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "ChatRequest")]
pub(crate) struct ChatQuestion {
    #[schemars(flatten)]
    own: ChatFields,
    #[schemars(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[schemars(flatten, with = "BudgetsSchema")]
    untaken: Untaken,
}

/// Fields that only requests for chats have.
#[derive(Debug, Deserialize, JsonSchema)]
struct ChatFields {
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
    #[serde(default, deserialize_with = "optional_object")]
    response_format: Option<ResponseFormat>,
    /// Tools that the model may call, up to 128.
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether the answer may have several calls, as it may by default.
    parallel_tool_calls: Option<bool>,
    /// Variables of the template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// Form of an answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ResponseFormat {
    Text {},
    JsonObject {},
    JsonSchema {
        #[serde(deserialize_with = "object")]
        json_schema: NamedSchema,
    },
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
    Extension(limit): Extension<TimeLimit>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let question: ChatQuestion = off_thread(body.len(), move || ChatQuestion::parse(&body))
        .instrument(debug_span!("decode"))
        .await?;
    let model = Model::find(shared.api.repository.registry(), &question.own.model, None)?;
    let door = Door::open(model, limit)?;
    let (chat, asked) = question.read(arrival, &door.language);
    let answering = begin(door, chat, asked, permit, NAMES).await?;
    match answering.form.is_stream {
        true => Ok(stream(answering, ChatEvents)),
        false => whole(answering).await,
    }
}

impl ChatQuestion {
    /// Parses the body of a request.
    ///
    /// # Errors
    ///
    /// Fails on a body that is not a JSON object, and on fields of wrong types.
    pub(in crate::api) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut object = JsonObject::parse(body)?;
        let (own, common) = (object.take()?, object.take()?);
        Ok(Self { own, common, untaken: object.rest() })
    }

    /// Returns the chat for the template, and the rest of the request.
    fn read(self, arrival: Instant, language: &Language) -> (Result<Chat, ApiError>, Asked) {
        let Self { own, common, untaken } = self;
        let told = match (own.logprobs.unwrap_or(false), own.top_logprobs) {
            (true, Some(found)) if found > Sampling::MAX_LOGPROBS => {
                Err(wrong("top_logprobs", found, "0 to 20"))
            }
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, None | Some(0)) => Ok(None),
            (false, Some(found)) => Err(wrong("top_logprobs", found, "absent without `logprobs`")),
        };
        let asked_tools = AskedTools {
            functions: own.tools.map(|tools| tools.into_iter().map(Tool::into_function).collect()),
            choice: own.tool_choice,
            is_parallel: own.parallel_tool_calls,
        };
        let max_tokens = match own.max_completion_tokens {
            Some(_) => "max_completion_tokens",
            None => "max_tokens",
        };
        let (tools, shown) = asked_tools.read(language.template.as_ref());
        let asked = Asked {
            operation: "chat",
            keys: Keys { prompt: "messages", max_tokens, ..Keys::OF_TEXT },
            common,
            max_tokens: own.max_completion_tokens.or(own.max_tokens),
            logprobs: told.as_ref().ok().copied().flatten(),
            best_of: None,
            grammar: own.response_format.and_then(ResponseFormat::grammar),
            tools,
            untaken,
            arrival,
        };
        let messages = messages::checked(own.messages);
        let chat = told.and(shown).and_then(|tools| {
            Ok(Chat {
                messages: messages?,
                tools,
                documents: None,
                add_generation_prompt: true,
                extra: own.chat_template_kwargs.unwrap_or_default(),
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
