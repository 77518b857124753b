//! A key of a file with a wrong value.

use std::fmt::{self, Display};

/// A key with a wrong value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, dotted from the top of its file.
    pub key: String,
    /// The value of the key.
    pub value: String,
    /// The values that are valid.
    pub expected: String,
}

impl Fault {
    /// Creates the fault of `key`, which has `value` where something else is `expected`.
    pub fn new(key: impl Into<String>, value: impl Display, expected: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.to_string(), expected: expected.into() }
    }

    /// Returns the fault with its key below `table`.
    #[must_use]
    pub fn below(self, table: &str) -> Self {
        let key = if self.key.is_empty() { table.into() } else { format!("{table}.{}", self.key) };
        Self { key, ..self }
    }
}

impl Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, expected } = self;
        write!(formatter, "key `{key}` is `{value}`, but {expected}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_key_from_the_top_of_the_file() {
        let fault = Fault::new("height", 0, "it must lie in 1..=4096").below("image");
        assert_eq!(fault.to_string(), "key `image.height` is `0`, but it must lie in 1..=4096");
        assert_eq!(Fault::new("", "a b", "no spaces").below("anchors.a b").key, "anchors.a b");
    }
}
