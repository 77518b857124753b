//! Keys of a request by name, with the types of their values.
//!
//! Clients that have parameters as strings only write numbers as strings, as vLLM's backend takes
//! them.

use serde_json::{Map, Number, Value};

use crate::api::{codec::parameters::shorten, error::ApiError, http::generate::fields::wrong};

/// Type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Integer,
    Count,
    Switch,
}

/// Keys with a value of one type. Others are strings, or have several forms.
const KINDS: [(&str, Kind); 23] = [
    ("temperature", Kind::Number),
    ("top_p", Kind::Number),
    ("min_p", Kind::Number),
    ("typical_p", Kind::Number),
    ("repetition_penalty", Kind::Number),
    ("frequency_penalty", Kind::Number),
    ("presence_penalty", Kind::Number),
    ("memory_budget_mb", Kind::Number),
    ("min_quality", Kind::Number),
    ("top_k", Kind::Integer),
    ("seed", Kind::Integer),
    ("n", Kind::Count),
    ("max_tokens", Kind::Count),
    ("logprobs", Kind::Count),
    ("priority", Kind::Count),
    ("stream", Kind::Switch),
    ("ignore_eos", Kind::Switch),
    ("exclude_input_in_output", Kind::Switch),
    ("return_finish_reason", Kind::Switch),
    ("return_cumulative_logprob", Kind::Switch),
    ("return_logprobs", Kind::Switch),
    ("return_num_input_tokens", Kind::Switch),
    ("return_num_output_tokens", Kind::Switch),
];

/// Returns `keys` with values of the types that they must have.
///
/// # Errors
///
/// Fails on a value that is neither of its key's type nor a string of it.
pub(super) fn typed(keys: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let typed = keys.into_iter().map(|(name, value)| {
        let kind = KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        let value = match kind {
            Some(kind) if !value.is_null() => kind.read(&name, &value)?,
            _ => value,
        };
        Ok((name, value))
    });
    typed.collect()
}

impl Kind {
    fn read(self, name: &str, value: &Value) -> Result<Value, ApiError> {
        let found = match self {
            Self::Number => number(value).and_then(Number::from_f64).map(Value::Number),
            Self::Integer => integer(value).map(Value::from),
            Self::Count => integer(value).filter(|found| *found >= 0).map(Value::from),
            Self::Switch => switch(value).map(Value::Bool),
        };
        found.ok_or_else(|| wrong(name, shorten(value), self.expected()))
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Integer => "an integer",
            Self::Count => "an integer from 0 on",
            Self::Switch => "true or false",
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Returns a number without a fraction as an integer; every such number below 2^53 is exact.
fn whole(value: f64) -> Option<i64> {
    const LIMIT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is below 2^53")]
    (value.fract().abs() <= 0.0 && value.abs() < LIMIT).then_some(value as i64)
}

fn switch(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(switch) => Some(*switch),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(keys: Value) -> Result<Value, String> {
        let Value::Object(keys) = keys else { return Err("no object".to_owned()) };
        typed(keys).map(Value::Object).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_in_strings_are_numbers_and_other_strings_stay() {
        let keys = json!({"temperature": "0.5", "top_p": 1, "max_tokens": " 100", "seed": -3,
                          "stream": "True", "ignore_eos": false, "top_k": 5.0, "n": null,
                          "stop": "7", "plan": "1", "unknown": "1"});
        let expected = json!({"temperature": 0.5, "top_p": 1.0, "max_tokens": 100, "seed": -3,
                              "stream": true, "ignore_eos": false, "top_k": 5, "n": null,
                              "stop": "7", "plan": "1", "unknown": "1"});
        assert_eq!(read(keys), Ok(expected));
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_its_key() {
        for (keys, reason) in [
            (json!({"temperature": "warm"}), "`temperature` is \"warm\", but must be a number"),
            (json!({"temperature": "NaN"}), "must be a number"),
            (json!({"temperature": [0.5]}), "`temperature` is an array"),
            (json!({"max_tokens": -1}), "`max_tokens` is -1, but must be an integer from 0 on"),
            (json!({"max_tokens": 1.5}), "an integer from 0 on"),
            (json!({"top_k": 1e300}), "an integer"),
            (json!({"seed": "x"}), "`seed` is \"x\""),
            (json!({"seed": true}), "`seed` is true"),
            (json!({"stream": 1}), "`stream` is 1, but must be true or false"),
            (json!({"stream": "yes"}), "true or false"),
        ] {
            let error = read(keys).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
