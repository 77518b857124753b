//! A request for text, before its prompt is tokenized.

use std::time::Instant;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::typed;
use crate::api::{
    codec::object::JsonObject,
    error::ApiError,
    http::generate::{
        fields::{BudgetsSchema, Common, wrong},
        keys::Keys,
        start::{Asked, TEXT_COMPLETION, USUAL_TOKENS},
    },
};

/// Parameters of a request, as vLLM's backend for Triton names them.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "GenerateParameters")]
#[expect(dead_code, reason = "it is a description")]
pub(crate) struct SettingsSchema {
    #[schemars(flatten)]
    own: Settings,
    #[schemars(flatten)]
    wanted: Wanted,
    #[schemars(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[schemars(flatten)]
    budgets: BudgetsSchema,
}

/// Parameters that only these requests have.
#[derive(Debug, Deserialize, JsonSchema)]
struct Settings {
    /// Most tokens to generate; 16 if it is absent.
    max_tokens: Option<usize>,
    /// Number of alternatives whose probabilities are told.
    logprobs: Option<usize>,
    /// Whether the text of the answer begins behind the prompt. It always does in a stream.
    exclude_input_in_output: Option<bool>,
}

/// Further outputs that a request wants.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
pub(super) struct Wanted {
    return_finish_reason: Option<bool>,
    return_cumulative_logprob: Option<bool>,
    return_logprobs: Option<bool>,
    return_num_input_tokens: Option<bool>,
    return_num_output_tokens: Option<bool>,
}

impl Wanted {
    pub(super) fn has_finish_reason(self) -> bool {
        self.return_finish_reason.unwrap_or(false)
    }

    pub(super) fn has_cumulative_logprob(self) -> bool {
        self.return_cumulative_logprob.unwrap_or(false)
    }

    pub(super) fn has_logprobs(self) -> bool {
        self.return_logprobs.unwrap_or(false)
    }

    pub(super) fn has_num_input_tokens(self) -> bool {
        self.return_num_input_tokens.unwrap_or(false)
    }

    pub(super) fn has_num_output_tokens(self) -> bool {
        self.return_num_output_tokens.unwrap_or(false)
    }
}

/// A request for text.
#[derive(Debug)]
pub(crate) struct Question {
    /// Text to continue.
    pub(super) text: String,
    /// Further outputs.
    pub(super) wanted: Wanted,
    /// Whether the text of the answer begins with the prompt.
    pub(super) has_input: bool,
    /// Whether the text comes in pieces.
    pub(super) is_stream: bool,
    /// Number of alternatives that `logprobs` has.
    pub(super) logprobs: Option<usize>,
    /// Rest of the request.
    pub(super) asked: Asked,
}

impl Question {
    /// Reads a request for the continuation of `text` that arrived at `arrival`.
    ///
    /// # Errors
    ///
    /// Fails on a value that is not valid. Unknown keys are refused later, among the budgets.
    pub(crate) fn new(
        text: String,
        keys: Map<String, Value>,
        arrival: Instant,
    ) -> Result<Self, ApiError> {
        if keys.contains_key("stream_options") {
            return Err(wrong(
                "stream_options",
                "there",
                "absent; return_num_output_tokens counts",
            ));
        }
        let mut object = JsonObject::of(typed(keys)?);
        let Settings { max_tokens, logprobs, exclude_input_in_output } = object.take()?;
        let (wanted, common): (Wanted, Common) = (object.take()?, object.take()?);
        let is_stream = common.form(logprobs)?.is_stream;
        if is_stream && exclude_input_in_output == Some(false) {
            return Err(wrong("exclude_input_in_output", false, "true or absent in a stream"));
        }
        let has_input = !exclude_input_in_output.unwrap_or(is_stream);
        let sums = wanted.has_cumulative_logprob().then_some(0);
        let asked = Asked {
            operation: TEXT_COMPLETION,
            keys: Keys { prompt: "text_input", ..Keys::OF_TEXT },
            common,
            max_tokens: Some(max_tokens.unwrap_or(USUAL_TOKENS)),
            logprobs: logprobs.or(sums),
            best_of: None,
            grammar: None,
            tools: None,
            untaken: object.rest(),
            arrival,
        };
        Ok(Self { text, wanted, has_input, is_stream, logprobs, asked })
    }

    /// Returns whether the text comes in pieces.
    pub(crate) fn is_stream(&self) -> bool {
        self.is_stream
    }
}
