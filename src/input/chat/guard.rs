//! Marks in texts of users, where a special token would begin or end.
//!
//! A mark is a character that the chat does not have. It stands inside each text that looks like a
//! special token; a template carries it to its output, where it is taken out and its place kept.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Characters that may be marks: those for private use in the first plane.
const MARKS: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{F8FF}';

/// Places that are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Density {
    /// Every place where a special token could begin, whatever the template leaves out of a text.
    Everywhere,
    /// Special tokens that stand in a text, and starts and ends of them at its borders.
    Whole,
}

/// Marker of texts.
#[derive(Debug)]
pub(super) struct Marker<'s> {
    specials: Vec<&'s str>,
    mark: char,
}

impl<'s> Marker<'s> {
    /// Creates a marker of texts that look like `specials`, with a mark that stands neither in
    /// `template` nor in `variables`; None if they have all.
    pub(super) fn new(
        specials: impl Iterator<Item = &'s str>,
        template: &str,
        variables: &Map<String, Value>,
    ) -> Option<Self> {
        let mut used = BTreeSet::new();
        let mut look = |text: &str| used.extend(text.chars().filter(|c| MARKS.contains(c)));
        look(template);
        for (name, value) in variables {
            look(name);
            for_each_text(value, &mut look);
        }
        let mark = MARKS.into_iter().find(|mark| !used.contains(mark))?;
        // A token of one character has no place inside it; the finder of tokens has none.
        let specials = specials.filter(|special| special.chars().nth(1).is_some()).collect();
        Some(Self { specials, mark })
    }

    /// Returns `variables` with marks in all texts.
    pub(super) fn marked(
        &self,
        variables: &Map<String, Value>,
        density: Density,
    ) -> Map<String, Value> {
        let field = |field: (&String, &Value)| (field.0.clone(), self.value(field.1, density));
        variables.iter().map(field).collect()
    }

    fn value(&self, value: &Value, density: Density) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, density)),
            Value::Array(items) => items.iter().map(|item| self.value(item, density)).collect(),
            Value::Object(fields) => {
                let field = |field: (&String, &Value)| {
                    (self.text(field.0, density), self.value(field.1, density))
                };
                Value::Object(fields.iter().map(field).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    /// Returns `text` with marks.
    fn text(&self, text: &str, density: Density) -> String {
        let mut places = BTreeSet::new();
        for special in &self.specials {
            let first = special.chars().next().map_or(0, char::len_utf8);
            let whole = match density {
                Density::Everywhere => &special[..first],
                Density::Whole => special,
            };
            places.extend(text.match_indices(whole).map(|(start, _)| start + first));
            let borders = special.char_indices().skip(1).map(|(border, _)| border);
            for border in borders {
                let (start, end) = special.split_at(border);
                if text.starts_with(end) {
                    places.insert(0);
                }
                if text.ends_with(start) {
                    places.insert(text.len());
                }
            }
        }
        let mut marked = String::with_capacity(text.len() + places.len() * self.mark.len_utf8());
        let mut done = 0;
        for place in places {
            marked.push_str(&text[done..place]);
            marked.push(self.mark);
            done = place;
        }
        marked + &text[done..]
    }

    /// Takes the marks out of `text`; returns the rest and the offsets in it where they stood.
    pub(super) fn taken_out(&self, text: &str) -> super::ChatPrompt {
        let mut prompt =
            super::ChatPrompt { text: String::with_capacity(text.len()), guards: vec![] };
        for part in text.split_inclusive(self.mark) {
            let own = part.strip_suffix(self.mark);
            prompt.text.push_str(own.unwrap_or(part));
            if own.is_some() && prompt.guards.last() != Some(&prompt.text.len()) {
                prompt.guards.push(prompt.text.len());
            }
        }
        prompt
    }
}

/// Calls `look` with all texts in `value`.
fn for_each_text(value: &Value, look: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| for_each_text(item, look)),
        Value::Object(fields) => {
            for (name, value) in fields {
                look(name);
                for_each_text(value, look);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
