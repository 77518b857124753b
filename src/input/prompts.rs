//! Texts that stand before the texts of a request.

use std::collections::BTreeMap;

/// Prompts of an anchor: one of them stands before each text.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prompts {
    /// Prompt of a request that names none; empty for none.
    pub default: String,
    /// Prompts that a request may name.
    pub named: BTreeMap<String, String>,
}

impl Prompts {
    /// Returns the prompt `name`, or the default for `None`. Returns `None` if there is no such
    /// prompt.
    pub fn find(&self, name: Option<&str>) -> Option<&str> {
        match name {
            None => Some(&self.default),
            Some(name) => self.named.get(name).map(String::as_str),
        }
    }
}
