//! Requests for responses.

use std::time::Instant;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::{
        fields::{Common, wrong},
        head::unix_seconds,
        messages::tools::{AskedTools, Function, ToolChoice, ToolMode},
        start::Asked,
    },
    input::messages,
    output::{Echo, ResponseAnswer},
    parts::{ChosenTool, ResponseTool, ResponseToolChoice, TextForm, TextFormat},
};
use crate::{
    api::{codec::parameters::ParametersSchema, error::ApiError},
    input::{Chat, Language},
};

/// Most pairs of `metadata`, and most bytes of their values.
const MAX_METADATA: usize = 16;
const MAX_METADATA_BYTES: usize = 512;

/// A request for a response.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "ResponseRequest")]
#[serde(expecting = "a JSON object with `model` and `input`")]
pub(crate) struct ResponseQuestion {
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
    /// What is done with too long an input: only `disabled`, it is refused.
    #[serde(rename = "truncation")]
    _truncation: Option<Truncation>,
    /// Up to 16 pairs of texts, which the response repeats.
    metadata: Option<Map<String, Value>>,
    /// Variables of the template.
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[serde(flatten)]
    #[schemars(with = "ParametersSchema")]
    parameters: Map<String, Value>,
}

/// Text of a user, or items of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`input` must be a string or an array of items")]
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
    /// Returns the name of the model.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Returns the response of `model` before its first token.
    pub(super) fn answer(&self, model: &str) -> ResponseAnswer {
        let text = self.text.as_ref().and_then(|text| text.format.clone());
        ResponseAnswer::new(Echo {
            model: model.to_owned(),
            instructions: self.instructions.clone(),
            max_output_tokens: self.max_output_tokens,
            metadata: self.metadata.clone().unwrap_or_default(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            temperature: self.common.temperature(),
            top_p: self.common.top_p(),
            text: TextForm { format: Some(text.unwrap_or(TextFormat::Text {})) },
            tool_choice: self
                .tool_choice
                .clone()
                .unwrap_or(ResponseToolChoice::Mode(ToolMode::Auto)),
            tools: self.tools.clone().unwrap_or_default(),
        })
    }

    /// Returns the chat for the template, and the rest of the request.
    pub(super) fn read(
        self,
        arrival: Instant,
        language: &Language,
    ) -> (Result<Chat, ApiError>, Asked) {
        let checked = self.check();
        let function = |tool: ResponseTool| Function {
            name: tool.name,
            description: tool.description,
            parameters: tool.parameters,
            strict: tool.strict,
        };
        let asked_tools = AskedTools {
            functions: self.tools.map(|tools| tools.into_iter().map(function).collect()),
            choice: self.tool_choice.map(|choice| match choice {
                ResponseToolChoice::Mode(mode) => ToolChoice::Mode(mode),
                ResponseToolChoice::Function(ChosenTool { name, .. }) => ToolChoice::named(name),
            }),
            is_parallel: self.parallel_tool_calls,
        };
        let (tools, shown) = asked_tools.read(language.template.as_ref());
        let asked = Asked {
            operation: "chat",
            common: self.common,
            max_tokens: self.max_output_tokens,
            logprobs: None,
            best_of: None,
            grammar: self.text.and_then(|text| text.format?.grammar()),
            tools,
            parameters: self.parameters,
            arrival,
        };
        let messages = match self.input {
            Input::Text(text) => Ok(vec![of_role("user", text)]),
            Input::Items(items) => messages(items),
        };
        let system = self.instructions.map(|text| of_role("system", text));
        let chat = checked.and(shown).and_then(|tools| {
            Ok(Chat {
                messages: system.into_iter().chain(messages?).collect(),
                tools,
                documents: None,
                add_generation_prompt: true,
                extra: self.chat_template_kwargs.unwrap_or_default(),
                now: i64::try_from(unix_seconds()).unwrap_or(i64::MAX),
            })
        });
        (chat, asked)
    }

    /// Checks what a server without a memory cannot do, and what only chats have.
    fn check(&self) -> Result<(), ApiError> {
        if self.store == Some(true) {
            return Err(wrong("store", "true", "false or absent: responses are not stored"));
        }
        if self.previous_response_id.is_some() {
            let expected = "absent: responses are not stored; send the whole conversation";
            return Err(wrong("previous_response_id", "there", expected));
        }
        let is_pair = |(_, value): (&String, &Value)| {
            value.as_str().is_some_and(|text| text.len() <= MAX_METADATA_BYTES)
        };
        if let Some(pairs) = &self.metadata
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
