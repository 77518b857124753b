//! Chats as the text that a model was trained on, by the template of its vocabulary.
//!
//! Templates are Jinja's, with the settings and functions of transformers' `apply_chat_template`.
//! Text of a user stays text: the places are told where no special token may be read. Start at
//! [`ChatTemplate`].

mod functions;
mod guard;
mod json;
mod render;
mod tools;

pub use self::render::{ChatTemplate, ChatTemplateError};

use serde_json::{Map, Value};

/// Names under which a message has its reasoning; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation, and what its template is given besides.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    /// Messages, the first first.
    pub messages: Vec<Map<String, Value>>,
    /// Tools that the model may call, as JSON schemas of functions; None for none.
    pub tools: Option<Vec<Value>>,
    /// Documents that the model may read; None for none.
    pub documents: Option<Vec<Value>>,
    /// Whether the text ends with the start of an answer.
    pub add_generation_prompt: bool,
    /// Further variables of the template, such as `enable_thinking`.
    pub extra: Map<String, Value>,
    /// Time that the template may write, in seconds since 1970, as UTC.
    pub now: i64,
}

/// A chat as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Text with special tokens by name.
    pub text: String,
    /// Byte offsets that no special token leads over, in rising order: there, text of the user
    /// would be one.
    pub guards: Vec<usize>,
}

impl Chat {
    /// Returns the variables of a template, as transformers makes them: without empty fields, and
    /// with reasoning under its names.
    fn variables(&self) -> Map<String, Value> {
        let messages = self.messages.iter().map(|message| Value::Object(cleaned(message)));
        let list = |items: &Option<Vec<Value>>| items.clone().map_or(Value::Null, Value::Array);
        let mut variables = self.extra.clone();
        variables.insert("messages".into(), messages.collect());
        variables.insert("tools".into(), list(&self.tools));
        variables.insert("documents".into(), list(&self.documents));
        let add = Value::Bool(self.add_generation_prompt);
        variables.insert("add_generation_prompt".into(), add);
        variables
    }
}

/// Returns `message` without fields that are null, and with its reasoning under the known names.
fn cleaned(message: &Map<String, Value>) -> Map<String, Value> {
    let fields = message.iter().filter(|field| !field.1.is_null());
    let mut fields: Map<String, Value> =
        fields.map(|(name, value)| (name.clone(), value.clone())).collect();
    if let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() {
        if !fields.contains_key("thinking") {
            fields.insert("thinking".into(), reasoning.clone());
        }
        fields.insert("reasoning_content".into(), reasoning);
    }
    fields
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
