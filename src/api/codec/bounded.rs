//! Parts of a JSON request that keep a bounded number of elements, so that they cannot eat memory.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::bounds::check;
use crate::serve::ServeError;

/// Most inputs, and most outputs, of a request.
pub(crate) const MAX_TENSORS: usize = 64;

/// Most parameters of a request, of an input and of an output.
pub(crate) const MAX_PARAMETERS: usize = 64;

/// Array that keeps at most [`MAX_TENSORS`] elements.
#[derive(Debug)]
pub(crate) struct Bounded<T> {
    kept: Vec<T>,
    len: usize,
}

impl<T> Bounded<T> {
    /// Returns the elements.
    ///
    /// # Errors
    ///
    /// Fails if the array had more elements than it keeps; `what` names their number in the error.
    pub(crate) fn checked(self, what: &str) -> Result<Vec<T>, ServeError> {
        check(what, self.len, MAX_TENSORS)?;
        Ok(self.kept)
    }
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), len: 0 }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

struct BoundedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedVisitor<T> {
    type Value = Bounded<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Bounded<T>, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX_TENSORS {
            match sequence.next_element()? {
                Some(tensor) => kept.push(tensor),
                None => {
                    return Ok(Bounded { len: kept.len(), kept });
                }
            }
        }
        let mut len = kept.len();
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            len += 1;
        }
        Ok(Bounded { kept, len })
    }
}

/// Reads a field that may be null; null counts as absent.
///
/// # Errors
///
/// Fails if the value is neither null nor of the field's form.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads at most [`MAX_PARAMETERS`] parameters; null counts as no parameters.
///
/// Arrays and objects, which no parameter takes, are read as empty ones.
///
/// # Errors
///
/// Fails if the value is neither null nor an object, or if it has more parameters.
pub(crate) fn parameters<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Map<String, Value>, D::Error> {
    or_default(deserializer).map(|Parameters(parameters)| parameters)
}

#[derive(Default)]
struct Parameters(Map<String, Value>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ParametersVisitor)
    }
}

struct ParametersVisitor;

impl<'de> Visitor<'de> for ParametersVisitor {
    type Value = Parameters;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Parameters, A::Error> {
        let mut parameters = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if parameters.len() == MAX_PARAMETERS {
                let message = format!("there are more than {MAX_PARAMETERS} parameters");
                return Err(de::Error::custom(message));
            }
            let Scalar(value) = fields.next_value()?;
            parameters.insert(name, value);
        }
        Ok(Parameters(parameters))
    }
}

/// Value whose arrays and objects are read as empty ones.
struct Scalar(Value);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor).map(Self)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Object(Map::new()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder {
        #[serde(default, deserialize_with = "parameters")]
        parameters: Map<String, Value>,
        #[serde(default, deserialize_with = "or_default")]
        outputs: Bounded<String>,
    }

    fn read(text: &str) -> Result<Holder, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn null_counts_as_absent() {
        for text in ["{}", r#"{"parameters":null,"outputs":null}"#] {
            let Holder { parameters, outputs } = read(text).expect(text);
            assert!(parameters.is_empty());
            assert!(outputs.checked("the number of outputs").expect("few").is_empty());
        }
    }

    #[test]
    fn scalars_are_kept_and_other_values_are_not() {
        let text = r#"{"parameters":{"a":1,"b":-1,"c":0.5,"d":"e","f":true,"g":null,
            "h":[1,[2]],"i":{"j":{}}}}"#;
        let found = Value::Object(read(text).expect("an object").parameters);
        let expected = json!({"a": 1, "b": -1, "c": 0.5, "d": "e", "f": true, "g": null,
                              "h": [], "i": {}});
        assert_eq!(found, expected);
    }

    #[test]
    fn more_parameters_than_any_request_has_are_refused() {
        let text = |count: usize| {
            let fields: Vec<String> = (0..count).map(|index| format!("\"{index}\":0")).collect();
            format!("{{\"parameters\":{{{}}}}}", fields.join(","))
        };
        assert_eq!(read(&text(MAX_PARAMETERS)).expect("few").parameters.len(), MAX_PARAMETERS);
        let error = read(&text(MAX_PARAMETERS + 1)).expect_err("many");
        assert!(error.contains("more than 64 parameters"), "{error}");
        let error = read(r#"{"parameters":[]}"#).expect_err("an array");
        assert!(error.contains("an object of parameters"), "{error}");
    }
}
