//! Bounds on the content of a request, checked before the request is decoded.
//!
//! Small bodies can ask for large values. An empty input of a message has two bytes and takes
//! hundreds once it is decoded. A kilobyte of gzip holds a million such inputs. So the values of a
//! body are counted before memory is allocated for them. This module decodes nothing.

use crate::{
    family::{ImageSpec, Limits, Manifest},
    serve::ServeError,
};

/// Number of values beyond a model's elements that every request may hold. They are names,
/// parameters, shapes, and values that a later check refuses with a better message.
const SLACK: usize = 1 << 17;

/// Most bytes of JSON that are decoded without being counted; they hold too little to do harm.
const MAX_UNCOUNTED_BYTES: usize = 64 << 10;

/// Bounds on the number of elements in the inputs of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Most elements of type `BYTES`.
    pub(crate) texts: usize,
    /// Most numeric elements.
    pub(crate) numbers: usize,
}

impl Bounds {
    /// Bounds of a request without tensors.
    pub(crate) const NO_TENSORS: Self = Self { texts: 0, numbers: 0 };

    /// Returns the bounds of requests to a family.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let Limits { max_batch, max_tokens, .. } = manifest.limits;
        let row = match &manifest.image {
            // Token ids and their mask.
            None => max_tokens.saturating_mul(2),
            Some(ImageSpec { channels, height, width, .. }) => {
                channels.saturating_mul(*height).saturating_mul(*width)
            }
        };
        Self { texts: max_batch, numbers: max_batch.saturating_mul(row) }
    }

    /// Returns the larger of `self` and `other` for each bound.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { texts: self.texts.max(other.texts), numbers: self.numbers.max(other.numbers) }
    }

    /// Checks the number of `BYTES` elements in a request.
    ///
    /// # Errors
    ///
    /// Fails if `found` is more than any request of the model has.
    pub(crate) fn check_texts(&self, found: usize) -> Result<(), ServeError> {
        check("the number of strings in the body", found, self.texts.saturating_add(SLACK))
    }

    /// Checks the number of values of any kind in a request.
    ///
    /// # Errors
    ///
    /// Fails if `found` is more than any request of the model has.
    pub(crate) fn check_values(&self, found: usize) -> Result<(), ServeError> {
        let limit = self.numbers.saturating_add(self.texts).saturating_add(SLACK);
        check("the number of values in the body", found, limit)
    }

    /// Counts and checks the strings and values of a JSON text that is large enough to do harm.
    ///
    /// # Errors
    ///
    /// Fails if `json` holds more than any request of the model has.
    pub(crate) fn check_json(&self, json: &[u8]) -> Result<(), ServeError> {
        if json.len() <= MAX_UNCOUNTED_BYTES {
            return Ok(());
        }
        let Census { strings, values } = Census::take(json);
        self.check_texts(strings)?;
        self.check_values(values)
    }
}

/// Checks that `found` is at most `limit`.
///
/// # Errors
///
/// Fails if `found` is over `limit`; `what` names the number in the error.
pub(crate) fn check(what: &str, found: usize, limit: usize) -> Result<(), ServeError> {
    if found > limit {
        return Err(ServeError::TooLarge { what: what.to_owned(), found, limit });
    }
    Ok(())
}

/// Upper bounds on the number of strings and values in a JSON text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Census {
    /// Number of strings, including the names of fields.
    strings: usize,
    /// Number of array elements, fields, arrays and objects.
    values: usize,
}

impl Census {
    /// Counts the strings and values of `json`. Malformed JSON is counted too, and refused later.
    fn take(json: &[u8]) -> Self {
        let mut census = Self::default();
        let mut rest = json;
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'"' => {
                    census.strings += 1;
                    rest = after_string(rest);
                }
                b',' | b'[' | b'{' => census.values += 1,
                _ => {}
            }
        }
        census
    }
}

/// Returns the bytes after the string that `rest` begins within.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        if rest[at] == b'"' {
            return &rest[at + 1..];
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_values_are_counted_without_being_decoded() {
        for (json, strings, values) in [
            ("", 0, 0),
            ("[1,2,3]", 0, 3),
            (r#"{"a":["b","c,[\"{"],"d":{}}"#, 4, 5),
            (r#"["\\","\\\"",""]"#, 3, 3),
            (r#"["cut\"#, 1, 1),
            (r#"["cut"#, 1, 1),
            ("[[[", 0, 3),
        ] {
            assert_eq!(Census::take(json.as_bytes()), Census { strings, values }, "{json}");
        }
    }

    #[test]
    fn large_bodies_hold_no_more_than_their_model_reads() {
        let bounds = Bounds { texts: 64, numbers: 1000 };
        let numbers = |count: usize| format!("[{}1]", "1,".repeat(count)).into_bytes();
        let texts = |count: usize| format!("[{}1]", "\"\",".repeat(count)).into_bytes();
        assert!(bounds.check_json(&numbers(SLACK + 1000)).is_ok());
        assert!(bounds.check_json(&texts(SLACK + 64)).is_ok());
        for (json, what) in
            [(numbers(SLACK + 1100), "number of values"), (texts(SLACK + 65), "number of strings")]
        {
            let error = bounds.check_json(&json).expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn bounds_cannot_overflow() {
        let widest = Bounds { texts: usize::MAX, numbers: usize::MAX };
        assert!(widest.check_values(usize::MAX).is_ok());
        assert_eq!(widest.max(Bounds::NO_TENSORS), widest);
    }
}
