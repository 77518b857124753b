//! Message of an answer, whole and in pieces.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::input::{CallFormat, Part};

/// Bytes at random of which an id of Mistral's is made, which its template demands to have.
const SHORT_ID: usize = 9;

/// Message of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatMessage {
    role: &'static str,
    /// Text, or null for a message that only calls tools.
    content: Option<String>,
    /// Thought of a model that thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    refusal: Option<String>,
}

/// Call of a tool.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

/// Function that is called.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CalledFunction {
    name: String,
    /// JSON text of the arguments.
    arguments: String,
}

impl ChatMessage {
    /// Creates an empty message.
    pub(crate) fn new() -> Self {
        Self {
            role: "assistant",
            content: Some(String::new()),
            reasoning_content: None,
            tool_calls: Vec::new(),
            refusal: None,
        }
    }

    /// Adds a part of an answer whose calls have the form `format`.
    pub(crate) fn add(&mut self, part: &Part, format: Option<CallFormat>) {
        match part {
            Part::Thought(text) => {
                self.reasoning_content.get_or_insert_default().push_str(text);
            }
            Part::Text(text) => self.content.get_or_insert_default().push_str(text),
            Part::Call { name, .. } => {
                self.content.take_if(|content| content.is_empty());
                let function = CalledFunction { name: name.clone(), arguments: String::new() };
                self.tool_calls.push(ToolCall { id: call_id(format), kind: "function", function });
            }
            Part::Arguments { text, .. } => {
                if let Some(call) = self.tool_calls.last_mut() {
                    call.function.arguments.push_str(text);
                }
            }
        }
    }
}

/// Returns what `parts` add to a message, in the form of an event.
pub(crate) fn delta(parts: &[Part], format: Option<CallFormat>) -> Value {
    let mut delta = Map::new();
    let mut calls: Vec<Value> = Vec::new();
    let mut add = |key: &str, text: &str| {
        let value = delta.entry(key).or_insert_with(|| "".into());
        *value = (value.as_str().unwrap_or_default().to_owned() + text).into();
    };
    for part in parts {
        match part {
            Part::Thought(text) => add("reasoning_content", text),
            Part::Text(text) => add("content", text),
            Part::Call { index, name } => calls.push(json!({
                "index": index, "id": call_id(format), "type": "function",
                "function": {"name": name, "arguments": ""},
            })),
            Part::Arguments { index, text } => match calls.last_mut() {
                Some(call) if call["index"] == *index => {
                    let before = call["function"]["arguments"].as_str().unwrap_or_default();
                    call["function"]["arguments"] = (before.to_owned() + text).into();
                }
                _ => calls.push(json!({"index": index, "function": {"arguments": text}})),
            },
        }
    }
    if !calls.is_empty() {
        delta.insert("tool_calls".to_owned(), calls.into());
    }
    delta.into()
}

/// Returns the id of a new call.
pub(crate) fn call_id(format: Option<CallFormat>) -> String {
    let id = format!("{:032x}", rand::random::<u128>());
    match format {
        Some(CallFormat::Mistral) => id[..SHORT_ID].to_owned(),
        Some(CallFormat::Hermes | CallFormat::Llama) | None => format!("call_{}", &id[..24]),
    }
}
