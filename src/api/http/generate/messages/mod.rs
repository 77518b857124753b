//! Messages of a chat, as templates read them.

pub(crate) mod answer;
pub(crate) mod tools;

use serde_json::{Map, Value};

use super::fields::wrong;
use crate::api::error::ApiError;

/// Most calls of a message.
const MAX_CALLS: usize = 128;

/// Checks the messages of a chat.
///
/// # Errors
///
/// Fails on no message, and on one that is not valid.
pub(in crate::api) fn checked(
    messages: Vec<Map<String, Value>>,
) -> Result<Vec<Map<String, Value>>, ApiError> {
    match messages.is_empty() {
        true => Err(wrong("messages", "empty", "one message or more")),
        false => messages.into_iter().enumerate().map(|(index, own)| message(index, own)).collect(),
    }
}

/// Checks a message. Content in parts is put together, a developer counts as the system, and
/// arguments of calls become objects.
fn message(index: usize, mut message: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let name = |field: &str| format!("messages[{index}].{field}");
    let role = match message.get("role").map(|role| role.as_str().unwrap_or_default()) {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        found => {
            let found = found.map_or("missing", |_| "another");
            let expected = "system, developer, user, assistant or tool";
            return Err(wrong(&name("role"), found, expected));
        }
    };
    let (role, is_answer) = (Value::from(role), role == "assistant");
    message.insert("role".to_owned(), role);
    if message.get("tool_call_id").is_some_and(|id| !id.is_string() && !id.is_null()) {
        return Err(wrong(&name("tool_call_id"), "of another type", "a string"));
    }
    match message.shift_remove("tool_calls") {
        None | Some(Value::Null) => {}
        Some(_) if !is_answer => {
            return Err(wrong(&name("tool_calls"), "there", "absent unless an assistant called"));
        }
        Some(Value::Array(calls)) if calls.len() <= MAX_CALLS => {
            let calls = calls.into_iter().enumerate();
            let calls = calls.map(|(place, own)| call(&name(&format!("tool_calls[{place}]")), own));
            let calls = calls.collect::<Result<Vec<Value>, _>>()?;
            if !calls.is_empty() {
                message.insert("tool_calls".to_owned(), calls.into());
            }
        }
        Some(_) => {
            return Err(wrong(&name("tool_calls"), "another", "an array of up to 128 calls"));
        }
    }
    let content = match message.get("content") {
        Some(Value::String(_)) => return Ok(message),
        None | Some(Value::Null) if has_other_parts(&message) => return Ok(message),
        None | Some(Value::Null) => {
            let expected = "a string or an array of parts";
            return Err(wrong(&name("content"), "missing", expected));
        }
        Some(Value::Array(parts)) => parts.iter().map(|part| {
            let text = part.get("text").and_then(Value::as_str);
            text.filter(|_| part["type"] == "text")
        }),
        Some(_) => {
            let expected = "a string or an array of parts";
            return Err(wrong(&name("content"), "of another type", expected));
        }
    };
    let content: Option<String> = content.collect();
    let content = content.ok_or_else(|| {
        wrong(&name("content"), "a part of another type", "parts of the type `text`")
    })?;
    message.insert("content".to_owned(), content.into());
    Ok(message)
}

/// Returns whether a message says something without its content.
fn has_other_parts(message: &Map<String, Value>) -> bool {
    ["tool_calls", "reasoning_content"].iter().any(|part| message.contains_key(*part))
}

/// Checks a call, known as `name` in errors, whose arguments become an object.
fn call(name: &str, mut call: Value) -> Result<Value, ApiError> {
    let own = |field: &str| format!("{name}.{field}");
    if call.get("type").is_some_and(|kind| kind != "function") {
        return Err(wrong(&own("type"), "another", "`function`"));
    }
    if call.get("id").is_some_and(|id| !id.is_string()) {
        return Err(wrong(&own("id"), "of another type", "a string"));
    }
    let Some(Value::Object(function)) = call.get_mut("function") else {
        return Err(wrong(&own("function"), "missing", "an object with `name` and `arguments`"));
    };
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(wrong(&own("function.name"), "missing", "a string"));
    }
    let found = match function.get("arguments") {
        Some(Value::Object(found)) => Some(found.clone()),
        Some(Value::String(text)) => arguments(text),
        _ => None,
    };
    let expected = "the text of a JSON object";
    let arguments =
        found.ok_or_else(|| wrong(&own("function.arguments"), "not a JSON object", expected))?;
    function.insert("arguments".to_owned(), arguments.into());
    Ok(call)
}

/// Returns the arguments of a call, or None if `text` is not that of a JSON object.
pub(super) fn arguments(text: &str) -> Option<Map<String, Value>> {
    match text.trim().is_empty() {
        true => Some(Map::new()),
        false => serde_json::from_str(text).ok(),
    }
}
