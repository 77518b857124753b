//! Parts of a request for a response that the response repeats.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::messages::tools::{ToolKind, ToolMode};
use crate::{
    serve::Grammar,
    tensor::json::{object, optional_object},
};

/// Form of the text.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TextForm {
    #[serde(default, deserialize_with = "optional_object")]
    pub(super) format: Option<TextFormat>,
}

/// Form of the text: `text`, `json_object` or `json_schema`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum TextFormat {
    Text {},
    JsonObject {},
    JsonSchema {
        name: String,
        schema: Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<String>,
        /// Whether the schema is kept; it always is.
        #[serde(skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
    },
}

impl TextFormat {
    /// Returns the grammar of the text; `None` for any text.
    pub(super) fn grammar(&self) -> Option<Grammar> {
        match self {
            Self::Text {} => None,
            Self::JsonObject {} => Some(Grammar::JsonObject),
            Self::JsonSchema { schema, .. } => Some(Grammar::JsonSchema(schema.clone())),
        }
    }
}

/// A function that the model may call.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a function with `type` and `name`")]
pub(super) struct ResponseTool {
    #[serde(rename = "type")]
    kind: ToolKind,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) parameters: Option<Value>,
    pub(super) strict: Option<bool>,
}

/// Choice among tools: `none`, `auto`, `required`, or a function.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "must be none, auto, required or a function")]
pub(super) enum ResponseToolChoice {
    Mode(ToolMode),
    Function(#[serde(deserialize_with = "object")] ChosenTool),
}

/// Function that must be called.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChosenTool {
    #[serde(rename = "type")]
    kind: ToolKind,
    pub(super) name: String,
}
