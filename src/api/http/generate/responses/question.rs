//! Requests for responses.

use std::time::Instant;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::{
        fields::{BudgetsSchema, Common, wrong},
        head::unix_seconds,
        keys::Keys,
        messages::tools::{AskedTools, Function, ToolChoice, ToolMode},
        start::Asked,
    },
    input::messages,
    output::{Echo, ResponseAnswer},
    parts::{ChosenTool, ResponseTool, ResponseToolChoice, TextForm, TextFormat},
};
use crate::{
    api::{
        codec::object::{JsonObject, Untaken},
        error::ApiError,
    },
    input::{Chat, Language},
};

const KEYS: Keys = Keys { prompt: "input", max_tokens: "max_output_tokens", form: "text.format" };

/// Most pairs of `metadata`, and most bytes of their values.
const MAX_METADATA: usize = 16;
const MAX_METADATA_BYTES: usize = 512;

/// A request for a response.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "ResponseRequest")]
pub(crate) struct ResponseQuestion {
    #[schemars(flatten)]
    own: ResponseFields,
    #[schemars(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[schemars(flatten, with = "BudgetsSchema")]
    untaken: Untaken,
}

/// Fields that only requests for responses have.
#[derive(Debug, Deserialize, JsonSchema)]
struct ResponseFields {
    model: String,
    input: Input,
    /// Message of the system before the input.
    instructions: Option<String>,
    /// Most tokens to generate, those of thoughts included.
    max_output_tokens: Option<usize>,
    text: Option<TextForm>,
    /// Functions that the model may call, up to 128.
    tools: Option<Vec<ResponseTool>>,
    tool_choice: Option<ResponseToolChoice>,
    /// Whether the response may have several calls, as it may by default.
    parallel_tool_calls: Option<bool>,
    /// Whether the response is stored; it never is.
    store: Option<bool>,
    /// Id of an earlier response; none is stored.
    previous_response_id: Option<String>,
    /// Treatment of too long an input: only `disabled`, it is refused.
    #[serde(rename = "truncation")]
    _truncation: Option<Truncation>,
    /// Up to 16 pairs of texts, which the response repeats.
    metadata: Option<Map<String, Value>>,
    /// Variables of the template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// Text of a user, or items of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or an array of items")]
enum Input {
    Text(String),
    Items(Vec<Map<String, Value>>),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Truncation {
    Disabled,
}

impl ResponseQuestion {
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

    /// Returns the name of the model.
    pub(super) fn model(&self) -> &str {
        &self.own.model
    }

    /// Returns the response of `model` before its first token.
    pub(super) fn answer(&self, model: &str) -> ResponseAnswer {
        let own = &self.own;
        let text = own.text.as_ref().and_then(|text| text.format.clone());
        ResponseAnswer::new(Echo {
            model: model.to_owned(),
            instructions: own.instructions.clone(),
            max_output_tokens: own.max_output_tokens,
            metadata: own.metadata.clone().unwrap_or_default(),
            parallel_tool_calls: own.parallel_tool_calls.unwrap_or(true),
            temperature: self.common.temperature(),
            top_p: self.common.top_p(),
            text: TextForm { format: Some(text.unwrap_or(TextFormat::Text {})) },
            tool_choice: own
                .tool_choice
                .clone()
                .unwrap_or(ResponseToolChoice::Mode(ToolMode::Auto)),
            tools: own.tools.clone().unwrap_or_default(),
        })
    }

    /// Returns the chat for the template, and the rest of the request.
    pub(super) fn read(
        self,
        arrival: Instant,
        language: &Language,
    ) -> (Result<Chat, ApiError>, Asked) {
        let checked = self.check();
        let Self { own, common, untaken } = self;
        let function = |tool: ResponseTool| Function {
            name: tool.name,
            description: tool.description,
            parameters: tool.parameters,
            strict: tool.strict,
        };
        let asked_tools = AskedTools {
            functions: own.tools.map(|tools| tools.into_iter().map(function).collect()),
            choice: own.tool_choice.map(|choice| match choice {
                ResponseToolChoice::Mode(mode) => ToolChoice::Mode(mode),
                ResponseToolChoice::Function(ChosenTool { name, .. }) => ToolChoice::named(name),
            }),
            is_parallel: own.parallel_tool_calls,
        };
        let (tools, shown) = asked_tools.read(language.template.as_ref());
        let asked = Asked {
            operation: "chat",
            keys: KEYS,
            common,
            max_tokens: own.max_output_tokens,
            logprobs: None,
            best_of: None,
            grammar: own.text.and_then(|text| text.format?.grammar()),
            tools,
            untaken,
            arrival,
        };
        let messages = match own.input {
            Input::Text(text) => Ok(vec![of_role("user", text)]),
            Input::Items(items) => messages(items),
        };
        let system = own.instructions.map(|text| of_role("system", text));
        let chat = checked.and(shown).and_then(|tools| {
            Ok(Chat {
                messages: system.into_iter().chain(messages?).collect(),
                tools,
                documents: None,
                add_generation_prompt: true,
                extra: own.chat_template_kwargs.unwrap_or_default(),
                now: i64::try_from(unix_seconds()).unwrap_or(i64::MAX),
            })
        });
        (chat, asked)
    }

    /// Checks what a server without a memory cannot do, and what only chats have.
    fn check(&self) -> Result<(), ApiError> {
        if self.own.store == Some(true) {
            return Err(wrong("store", "true", "false or absent: responses are not stored"));
        }
        if self.own.previous_response_id.is_some() {
            let expected = "absent: responses are not stored; send the whole conversation";
            return Err(wrong("previous_response_id", "there", expected));
        }
        let is_pair = |(_, value): (&String, &Value)| {
            value.as_str().is_some_and(|text| text.len() <= MAX_METADATA_BYTES)
        };
        if let Some(pairs) = &self.own.metadata
            && (pairs.len() > MAX_METADATA || !pairs.iter().all(is_pair))
        {
            return Err(wrong("metadata", "another", "up to 16 texts of up to 512 bytes"));
        }
        self.common.check_single()
    }
}

/// Returns a message.
fn of_role(role: &str, content: String) -> Map<String, Value> {
    let fields = [("role", json!(role)), ("content", content.into())];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
