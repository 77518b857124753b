//! Chats with tools, for templates that know none.
//!
//! Such a template is given the tools, calls and results as text, in the form that Hermes began and
//! most models were trained on.

use minijinja::{Environment, Error, Value, context, value::Serde};
use serde_json::{Map, json};

use super::Chat;

/// Names of the texts below in the environment of a template.
const TOOLS: &str = "tools";
const CALLS: &str = "calls";
const RESULTS: &str = "results";

/// Text that tells of the tools, as Qwen 2.5 was trained on it.
const TOOLS_TEXT: &str = include_str!("texts/tools.jinja");

/// Text of a message that calls tools.
const CALLS_TEXT: &str = include_str!("texts/calls.jinja");

/// Text of the results of tools.
const RESULTS_TEXT: &str = include_str!("texts/results.jinja");

/// Adds the texts to the environment of a template.
///
/// # Errors
///
/// Fails when they are not templates.
pub(super) fn add_texts(environment: &mut Environment<'static>) -> Result<(), Error> {
    environment.add_template(TOOLS, TOOLS_TEXT)?;
    environment.add_template(CALLS, CALLS_TEXT)?;
    environment.add_template(RESULTS, RESULTS_TEXT)
}

/// Returns a chat of one message; with a tool, if `has_tool`.
pub(super) fn probe(has_tool: bool) -> Chat {
    let message = json!({"role": "user", "content": "a"});
    let function = json!({"name": "probe", "description": "Probes.",
                          "parameters": {"type": "object", "properties": {}}});
    let tool = json!({"type": "function", "function": function});
    Chat {
        messages: message.as_object().cloned().into_iter().collect(),
        tools: has_tool.then(|| vec![tool]),
        add_generation_prompt: true,
        ..Chat::default()
    }
}

/// Returns whether `chat` has tools, calls or results.
pub(super) fn has_tools(chat: &Chat) -> bool {
    let is_of_tools =
        |message: &Map<String, _>| message.contains_key("tool_calls") || is_result(message);
    chat.tools.is_some() || chat.messages.iter().any(is_of_tools)
}

fn is_result(message: &Map<String, serde_json::Value>) -> bool {
    message.get("role").is_some_and(|role| role == "tool")
}

/// Returns `chat` with its tools, calls and results as texts. The tools stand before the text of
/// the first message of a user, or else of the first message.
///
/// # Errors
///
/// Fails when the texts take too many steps.
pub(super) fn as_texts(environment: &Environment<'static>, chat: &Chat) -> Result<Chat, Error> {
    let write = |name: &str, values: Value| environment.get_template(name)?.render(values);
    let mut messages: Vec<Map<String, serde_json::Value>> = Vec::new();
    for group in chat.messages.chunk_by(|one, other| is_result(one) && is_result(other)) {
        let mut message = group[0].clone();
        let content = Value::from(Serde(message.get("content")));
        if is_result(&message) {
            let results: Vec<_> = group.iter().map(|result| result.get("content")).collect();
            let text = write(RESULTS, context!(results => Value::from(Serde(results))))?;
            message = [("role".into(), json!("user")), ("content".into(), json!(text))]
                .into_iter()
                .collect();
        } else if let Some(calls) = message.remove("tool_calls") {
            let text = write(CALLS, context!(content, calls => Value::from(Serde(calls))))?;
            message.insert("content".into(), text.into());
        }
        messages.push(message);
    }
    if let Some(tools) = &chat.tools {
        let is_user = |message: &Map<String, _>| message.get("role").is_some_and(|r| r == "user");
        let place = messages.iter().position(is_user).unwrap_or(0);
        if let Some(message) = messages.get_mut(place) {
            let content = Value::from(Serde(message.get("content")));
            let tools = Value::from(Serde(tools));
            message.insert("content".into(), write(TOOLS, context!(tools, content))?.into());
        }
    }
    Ok(Chat { messages, tools: None, ..chat.clone() })
}
