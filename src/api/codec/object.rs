//! JSON objects whose fields belong to several types.

use std::collections::BTreeSet;

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error as _, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

use super::{body::parse_json, bounds::Bounds};
use crate::{
    api::{error::ApiError, json_error},
    tensor::json::Strict,
};

/// Fields of a JSON object, which types take one after another.
#[derive(Debug, Default)]
pub(crate) struct JsonObject {
    fields: Map<String, Value>,
    /// Names of the fields of the types that have taken theirs.
    known: BTreeSet<&'static str>,
}

/// Fields that no type has taken.
#[derive(Debug)]
pub(crate) struct Untaken {
    pub(crate) fields: Map<String, Value>,
    /// Names of the fields that types have taken, or would have.
    pub(crate) known: BTreeSet<&'static str>,
}

impl JsonObject {
    /// Parses the body of a request without tensors. A field that is there twice is refused.
    ///
    /// # Errors
    ///
    /// Fails on a body that is not a JSON object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        Ok(Self::of(parse_json(bytes, &Bounds::NO_TENSORS)?))
    }

    /// Returns the object of `fields`.
    pub(crate) fn of(fields: Map<String, Value>) -> Self {
        Self { fields, known: BTreeSet::new() }
    }

    /// Takes the fields of the struct `T`.
    ///
    /// # Errors
    ///
    /// Fails on a field that is missing or has a wrong type.
    pub(crate) fn take<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        Ok(json_error::of(Taking(self))?)
    }

    /// Returns the fields that no type has taken.
    pub(crate) fn rest(self) -> Untaken {
        Untaken { fields: self.fields, known: self.known }
    }
}

/// Deserializer of a struct from its fields among those of an object.
struct Taking<'o>(&'o mut JsonObject);

impl<'de> Deserializer<'de> for Taking<'_> {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let Self(JsonObject { fields: all, known }) = self;
        known.extend(fields);
        let own: Map<String, Value> =
            fields.iter().filter_map(|field| all.shift_remove_entry(*field)).collect();
        Strict::new(own).deserialize_struct(name, fields, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("only a struct takes fields"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Text {
        text: String,
        length: Option<usize>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Draw {
        temperature: Option<f32>,
    }

    fn object(json: &Value) -> JsonObject {
        JsonObject::parse(json.to_string().as_bytes()).expect("an object")
    }

    #[test]
    fn types_take_their_fields_and_leave_the_others() {
        let mut object = object(&json!({"text": "a", "temperature": 0.5, "plan": "p", "n": null}));
        let expected = Text { text: "a".to_owned(), length: None };
        assert_eq!(object.take::<Text>().ok(), Some(expected));
        assert_eq!(object.take::<Draw>().ok(), Some(Draw { temperature: Some(0.5) }));
        let Untaken { fields, known } = object.rest();
        assert_eq!(Value::from(fields), json!({"plan": "p", "n": null}));
        assert_eq!(known.into_iter().collect::<Vec<_>>(), ["length", "temperature", "text"]);
    }

    #[test]
    fn a_wrong_field_is_named_whichever_type_it_belongs_to() {
        let told = |json, name: &str| {
            let mut object = object(&json);
            let text = object.take::<Text>().map(drop);
            let error = text.and_then(|()| object.take::<Draw>().map(drop)).expect_err(name);
            assert_eq!(error.field().as_deref(), Some(name));
            error.to_string()
        };
        let error = told(json!({"text": "a", "temperature": "hot"}), "temperature");
        assert!(error.contains("`temperature` is a string, but must be a number"), "{error}");
        let error = told(json!({"text": "a", "length": -1}), "length");
        assert!(error.contains("must be an integer from 0 on"), "{error}");
        assert!(told(json!({"temperature": 1}), "text").contains("missing field `text`"));
    }

    #[test]
    fn a_body_is_one_object_of_distinct_fields() {
        for (body, told) in [
            (r#"{"text": "a", "text": "b"}"#, "duplicate field `text`"),
            (r#"{"text": {"a": [{"b": 1, "b": 2}]}}"#, "duplicate field `b`"),
            ("[1]", "it is an array, but must be a JSON object"),
            ("{} {}", "trailing characters"),
            ("", "EOF"),
        ] {
            let error = JsonObject::parse(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(told), "{body}: {error}");
        }
    }
}
