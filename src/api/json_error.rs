//! JSON that does not have the form that a route takes, in words for who wrote it.

use std::fmt;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::tensor::json::{self, Strict};

/// Longest value of a choice that an error repeats; longer ones may be texts in a wrong place.
const MAX_CHOICE: usize = 32;

/// Error for JSON without the form that was expected.
#[derive(Debug)]
pub(crate) struct JsonError {
    /// Path of the value that is wrong; `None` for the whole.
    path: Option<String>,
    reason: serde_json::Error,
}

/// Reads `text` as JSON.
///
/// # Errors
///
/// Fails on a text that is not JSON, or not of the form of `T`.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    json::parse(text).map_err(|reason| {
        // The path of every value costs time, so it is followed only where something is wrong.
        let again = reason.is_data().then(|| {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            of(Strict::new(&mut deserializer))
        });
        match again {
            Some(Err::<T, _>(error)) => error,
            Some(Ok(_)) | None => JsonError { path: None, reason },
        }
    })
}

/// Reads a value of `deserializer`.
///
/// # Errors
///
/// Fails on a value that is not of the form of `T`.
pub(crate) fn of<'de, T, D>(deserializer: D) -> Result<T, JsonError>
where
    T: Deserialize<'de>,
    D: Deserializer<'de, Error = serde_json::Error>,
{
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        // A name that was refused stands as a question mark in the path.
        let path = path.strip_suffix('?').unwrap_or(&path).trim_end_matches('.');
        let path = (!path.is_empty()).then(|| path.to_owned());
        JsonError { path, reason: error.into_inner() }
    })
}

impl JsonError {
    /// Returns the path of the field that is wrong or missing, or `None` if it is none alone.
    pub(crate) fn field(&self) -> Option<String> {
        let text = self.reason.to_string();
        let missing = ["missing field `", "duplicate field `"];
        let missing = missing.into_iter().find_map(|start| text.strip_prefix(start));
        let missing = missing.and_then(|rest| rest.split('`').next());
        match (&self.path, missing) {
            (Some(path), Some(name)) if path != name => Some(format!("{path}.{name}")),
            (_, Some(name)) => Some(name.to_owned()),
            (path, None) => path.clone(),
        }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.reason.to_string();
        let what = self.path.as_deref().map_or("it".to_owned(), |path| format!("`{path}`"));
        match (predicate(&text), &self.path) {
            (Some(predicate), None) => {
                let predicate = predicate.replace("must be an object", "must be a JSON object");
                write!(formatter, "{what} {predicate}")
            }
            (Some(predicate), Some(_)) => write!(formatter, "{what} {predicate}"),
            (None, Some(_)) => write!(formatter, "{what}: {text}"),
            (None, None) => formatter.write_str(&text),
        }
    }
}

/// Returns what a message of the JSON library says of a value, without the value, which may be a
/// text or a token that stands in a wrong place. Returns `None` for a message on something else.
fn predicate(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        let (value, expected) = rest.rsplit_once("`, expected ")?;
        let is_short = value.len() <= MAX_CHOICE && !value.contains(char::is_whitespace);
        let value = if is_short { format!("`{value}`") } else { "another text".to_owned() };
        return Some(format!("is {value}, but must be {expected}"));
    }
    let kinds = ["invalid type: ", "invalid value: "];
    let rest = kinds.into_iter().find_map(|kind| message.strip_prefix(kind));
    if let Some(rest) = rest {
        let (value, expected) = rest.rsplit_once(", expected ")?;
        let form = value.split(['"', '`']).next().unwrap_or_default().trim_end();
        let (expected, place) = match expected.find(" at line ") {
            Some(at) => expected.split_at(at),
            None => (expected, ""),
        };
        return Some(format!("is {}, but must be {}{place}", found(form), wanted(expected)));
    }
    if let Some(rest) = message.strip_prefix("invalid length ") {
        let (length, expected) = rest.split_once(", expected ")?;
        return Some(format!("is of length {length}, but must be {expected}"));
    }
    message.starts_with("must be ").then(|| message.to_owned())
}

/// Returns the words for the form of a value that was found.
fn found(form: &str) -> &str {
    match form {
        "map" => "an object",
        "sequence" => "an array",
        "string" => "a string",
        "integer" => "an integer",
        "floating point" => "a number",
        "boolean" => "a boolean",
        other => other,
    }
}

/// Returns the words for the form of a value that was expected.
fn wanted(form: &str) -> &str {
    let is_object = ["a map", "struct ", "internally tagged enum ", "map with a single key"];
    match form {
        "f32" | "f64" => "a number",
        "i8" | "i16" | "i32" | "i64" => "an integer",
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer from 0 on",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        _ if is_object.iter().any(|start| form.starts_with(start)) => "an object",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, expecting = "a JSON object with `name`")]
    struct Question {
        #[serde(rename = "name")]
        _name: String,
        #[serde(rename = "parts")]
        _parts: Option<Vec<Part>>,
        #[serde(rename = "weights")]
        _weights: Option<BTreeMap<String, f32>>,
        #[serde(rename = "stop")]
        _stop: Option<Stop>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Text,
        Image,
    }

    #[derive(Debug, Deserialize)]
    struct Part {
        #[serde(rename = "kind")]
        _kind: Kind,
        #[serde(rename = "size")]
        _size: Option<usize>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged, expecting = "must be a string or an array of strings")]
    enum Stop {
        One(#[expect(dead_code, reason = "only its form is read")] String),
        Several(#[expect(dead_code, reason = "only its form is read")] Vec<String>),
    }

    #[test]
    fn an_error_names_the_field_and_what_it_must_be() {
        for (text, told, field) in [
            (r#"{"name": 1}"#, "`name` is an integer, but must be a string", Some("name")),
            (r#"{"name": null}"#, "`name` is null, but must be a string", Some("name")),
            (
                r#"{"name": "", "parts": [{"kind": "text"}, {"kind": "film"}]}"#,
                "`parts[1].kind` is `film`, but must be `text` or `image`",
                Some("parts[1].kind"),
            ),
            (
                r#"{"name": "", "parts": [{"kind": "image", "size": -1}]}"#,
                "`parts[0].size` is an integer, but must be an integer from 0 on",
                Some("parts[0].size"),
            ),
            (
                r#"{"name": "", "parts": [{"kind": "image", "size": 0.5}]}"#,
                "`parts[0].size` is a number, but must be an integer from 0 on",
                Some("parts[0].size"),
            ),
            (r#"{"name": "", "parts": [{}]}"#, "missing field `kind`", Some("parts[0].kind")),
            (r#"{"name": "", "parts": {}}"#, "is an object, but must be an array", Some("parts")),
            (r#"{"name": "", "parts": [1]}"#, "is an integer, but must be an object", None),
            (r#"{"name": "", "weights": {"a": "b"}}"#, "is a string, but must be a number", None),
            (
                r#"{"name": "", "stop": 3}"#,
                "`stop` must be a string or an array of strings",
                Some("stop"),
            ),
            (r#"{"name": "", "weight": 3}"#, "unknown field `weight`", Some("weight")),
            (r#"{"name": "", "name": ""}"#, "duplicate field `name`", Some("name")),
            ("{}", "missing field `name`", Some("name")),
            (
                r#"{"name": "", "parts": [{"kind": "text", "kind": "text"}]}"#,
                "duplicate field `kind`",
                Some("parts[0].kind"),
            ),
            (r#"{"name": "", "parts": [["text"]]}"#, "is an array, but must be an object", None),
            ("[]", "it is an array, but must be a JSON object", None),
            ("{", "EOF while parsing an object", None),
        ] {
            let error = read::<Question>(text).expect_err(text);
            assert!(error.to_string().contains(told), "{text}: {error}");
            if field.is_some() {
                assert_eq!(error.field().as_deref(), field, "{text}: {error}");
            }
        }
    }

    #[test]
    fn an_error_does_not_repeat_a_text_in_a_wrong_place() {
        for text in [
            r#"{"name": "", "parts": "a \"secret\", expected b"}"#,
            r#"{"name": "", "parts": [{"kind": "a secret, `expected` b"}]}"#,
            r#"{"name": "", "parts": [{"kind": "text", "size": "secret"}]}"#,
            r#"{"name": "", "stop": {"secret": 1}}"#,
            r#""a secret""#,
        ] {
            let error = read::<Question>(text).expect_err(text).to_string();
            assert!(!error.contains("secret") && error.contains("must be"), "{text}: {error}");
        }
    }
}
