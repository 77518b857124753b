//! Items of a conversation as messages.

use serde_json::{Map, Value, json};

use super::super::{fields::wrong, messages::arguments};
use crate::api::error::ApiError;

/// Message of a chat.
type Message = Map<String, Value>;

/// Keys of all items that mean nothing here: ids and states of what another server has.
const IGNORED: [&str; 3] = ["id", "status", "phase"];

/// Returns the messages of a conversation. A thought and calls belong to the message of an
/// assistant beside them.
///
/// # Errors
///
/// Fails on an item of an unknown kind, and on one with an unknown key.
pub(super) fn messages(items: Vec<Map<String, Value>>) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> = Vec::new();
    let mut thought: Option<String> = None;
    if items.is_empty() {
        return Err(wrong("input", "empty", "a string, or one item or more"));
    }
    for (index, item) in items.into_iter().enumerate() {
        let item = Item { index, fields: item };
        match item.kind()? {
            Kind::Message => {
                let mut message = item.message()?;
                if message["role"] == "assistant" {
                    add_thought(&mut message, thought.take());
                }
                messages.push(message);
            }
            Kind::Call => {
                let call = item.call()?;
                let last = messages.last_mut().filter(|last| last["role"] == "assistant");
                match last {
                    Some(last) => add_call(last, call),
                    None => {
                        let mut message = Message::new();
                        message.insert("role".to_owned(), "assistant".into());
                        add_call(&mut message, call);
                        messages.push(message);
                    }
                }
                if let Some(last) = messages.last_mut() {
                    add_thought(last, thought.take());
                }
            }
            Kind::Result => messages.push(item.result()?),
            Kind::Reasoning => thought = Some(item.reasoning()?),
        }
    }
    Ok(messages)
}

fn add_thought(message: &mut Message, thought: Option<String>) {
    if let Some(thought) = thought {
        message.insert("reasoning_content".to_owned(), thought.into());
    }
}

fn add_call(message: &mut Message, call: Value) {
    let calls = message.entry("tool_calls").or_insert_with(|| json!([]));
    if let Value::Array(calls) = calls {
        calls.push(call);
    }
}

/// Kind of an item.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Message,
    Call,
    Result,
    Reasoning,
}

impl Kind {
    /// Returns the keys that an item of this kind may have.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Message => &["role", "content"],
            Self::Call => &["call_id", "name", "arguments"],
            Self::Result => &["call_id", "output"],
            Self::Reasoning => &["summary", "content"],
        }
    }
}

/// Item of a conversation.
struct Item {
    index: usize,
    fields: Map<String, Value>,
}

impl Item {
    fn key(&self, field: &str) -> String {
        format!("input[{}].{field}", self.index)
    }

    /// Returns the kind of the item, whose keys are known.
    fn kind(&self) -> Result<Kind, ApiError> {
        let kind = match self.fields.get("type").map(|kind| kind.as_str().unwrap_or_default()) {
            None | Some("message") => Kind::Message,
            Some("function_call") => Kind::Call,
            Some("function_call_output") => Kind::Result,
            Some("reasoning") => Kind::Reasoning,
            Some(_) => {
                let expected = "message, function_call, function_call_output or reasoning";
                return Err(wrong(&self.key("type"), "another", expected));
            }
        };
        let is_known =
            |key: &str| key == "type" || IGNORED.contains(&key) || kind.keys().contains(&key);
        let unknown = self.fields.iter().find(|(key, value)| !is_known(key) && !value.is_null());
        match unknown {
            Some((key, _)) => Err(wrong(&self.key(key), "there", "absent: it is not supported")),
            None => Ok(kind),
        }
    }

    fn text(&self, field: &str) -> Result<&str, ApiError> {
        let text = self.fields.get(field).and_then(Value::as_str);
        text.ok_or_else(|| wrong(&self.key(field), "missing", "a string"))
    }

    /// Returns the text of a string, or of parts of the kinds `kinds`.
    fn content(&self, field: &str, kinds: &[&str]) -> Result<String, ApiError> {
        let parts = match self.fields.get(field) {
            Some(Value::String(text)) => return Ok(text.clone()),
            Some(Value::Array(parts)) => parts,
            _ => return Err(wrong(&self.key(field), "missing", "a string or an array of parts")),
        };
        let text = |part: &Value| {
            let is_text = part["type"].as_str().is_some_and(|kind| kinds.contains(&kind));
            part["text"].as_str().filter(|_| is_text).map(str::to_owned)
        };
        let texts: Option<String> = parts.iter().map(text).collect();
        texts.ok_or_else(|| {
            wrong(&self.key(field), "a part of another type", "parts of text, such as `input_text`")
        })
    }

    fn message(&self) -> Result<Message, ApiError> {
        let role = match self.text("role")? {
            "developer" => "system",
            role @ ("user" | "assistant" | "system") => role,
            _ => {
                let expected = "user, assistant, system or developer";
                return Err(wrong(&self.key("role"), "another", expected));
            }
        };
        let content = self.content("content", &["input_text", "output_text", "text"])?;
        let fields = [("role".to_owned(), json!(role)), ("content".to_owned(), content.into())];
        Ok(fields.into_iter().collect())
    }

    fn call(&self) -> Result<Value, ApiError> {
        let text = self.text("arguments")?;
        let arguments = arguments(text).ok_or_else(|| {
            wrong(&self.key("arguments"), "not a JSON object", "the text of a JSON object")
        })?;
        let function = json!({"name": self.text("name")?, "arguments": arguments});
        Ok(json!({"id": self.text("call_id")?, "type": "function", "function": function}))
    }

    fn result(&self) -> Result<Message, ApiError> {
        let content = self.content("output", &["input_text", "output_text"])?;
        let fields = [
            ("role", json!("tool")),
            ("tool_call_id", self.text("call_id")?.into()),
            ("content", content.into()),
        ];
        Ok(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Returns the thought, or its summary.
    fn reasoning(&self) -> Result<String, ApiError> {
        let is_empty = |field: &str| match self.fields.get(field) {
            None | Some(Value::Null) => true,
            Some(other) => other.as_array().is_some_and(Vec::is_empty),
        };
        match (is_empty("content"), is_empty("summary")) {
            (false, _) => self.content("content", &["reasoning_text"]),
            (true, false) => self.content("summary", &["summary_text"]),
            (true, true) => Ok(String::new()),
        }
    }
}
