//! The JSON object of a call, read character by character.
//!
//! Only the object's own keys are looked at. Its arguments are given on as they come, and are not
//! checked: a model may write what is not JSON.

use std::sync::Arc;

/// Keys of the arguments, in any form.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// Reader of a call.
#[derive(Debug)]
pub(super) struct CallReader {
    /// Names of which one must be called; `None` if the marks around the call are enough.
    known: Option<Arc<[String]>>,
    place: Place,
    nesting: Nesting,
    /// JSON text of the key or the value that is being read.
    token: String,
    key: Key,
    name: Option<String>,
    /// Whether a value of the arguments was found.
    has_arguments: bool,
    is_announced: bool,
    /// Text of the arguments that was not taken yet.
    arguments: String,
}

/// State of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on.
    Open,
    /// It has ended.
    Complete,
    /// It is not a call.
    Broken,
}

/// Place in the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the object.
    Outside,
    /// Before a key, or the end.
    BeforeKey,
    Key,
    BehindKey,
    BeforeValue,
    Value,
    BehindValue,
}

/// Meaning of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Other,
}

/// Place among the brackets and strings of a value.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Goes on by `character`. Returns whether a string or a bracket has ended the value.
    fn step(&mut self, character: char) -> bool {
        match character {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' if self.in_string => self.is_escaped = true,
            '"' => {
                self.in_string = !self.in_string;
                return !self.in_string && self.depth == 0;
            }
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    /// Returns whether the value is neither in a bracket nor in a string.
    fn is_plain(&self) -> bool {
        self.depth == 0 && !self.in_string
    }
}

impl CallReader {
    /// Creates a reader of a call of one of the functions `known`, or of any.
    pub(super) fn new(known: Option<Arc<[String]>>) -> Self {
        Self {
            known,
            place: Place::Outside,
            nesting: Nesting::default(),
            token: String::new(),
            key: Key::Other,
            name: None,
            has_arguments: false,
            is_announced: false,
            arguments: String::new(),
        }
    }

    /// Returns whether it is certain that this is a call.
    pub(super) fn is_announced(&self) -> bool {
        self.is_announced
    }

    /// Returns the name of the function once it is certain that this is a call.
    pub(super) fn announced(&self) -> Option<&str> {
        self.name.as_deref().filter(|_| self.is_announced)
    }

    /// Returns the text of the arguments that was read, once this is certain to be a call.
    pub(super) fn take_arguments(&mut self) -> String {
        match self.is_announced {
            true => std::mem::take(&mut self.arguments),
            false => String::new(),
        }
    }

    /// Reads `text` up to the end of the call. Returns the number of bytes that were read.
    pub(super) fn read(&mut self, text: &str) -> (Progress, usize) {
        for (place, character) in text.char_indices() {
            let progress = self.step(character);
            if progress != Progress::Open {
                return (progress, place + character.len_utf8());
            }
        }
        (Progress::Open, text.len())
    }

    fn step(&mut self, character: char) -> Progress {
        let is_space = character.is_whitespace();
        match (self.place, character) {
            (Place::Outside | Place::BehindKey | Place::BehindValue, _) if is_space => {}
            (Place::BeforeKey | Place::BeforeValue, _) if is_space => {}
            (Place::Outside, '{') => self.place = Place::BeforeKey,
            (Place::BeforeKey, '"') => {
                self.place = Place::Key;
                self.start(character);
            }
            (Place::BeforeKey | Place::BehindValue, '}') => return self.end(),
            (Place::Key, _) => {
                self.token.push(character);
                if self.nesting.step(character) {
                    self.place = Place::BehindKey;
                    self.key = self.read_key();
                }
            }
            (Place::BehindKey, ':') => self.place = Place::BeforeValue,
            (Place::BeforeValue, ',' | '}') => return Progress::Broken,
            (Place::BeforeValue, _) => {
                self.place = Place::Value;
                self.token.clear();
                self.nesting = Nesting::default();
                return self.value(character);
            }
            (Place::Value, _) => return self.value(character),
            (Place::BehindValue, ',') => self.place = Place::BeforeKey,
            _ => return Progress::Broken,
        }
        Progress::Open
    }

    /// Begins a key with `character`.
    fn start(&mut self, character: char) {
        self.token.clear();
        self.token.push(character);
        self.nesting = Nesting::default();
        self.nesting.step(character);
    }

    fn read_key(&self) -> Key {
        match serde_json::from_str::<String>(&self.token).as_deref() {
            Ok("name") if self.name.is_none() => Key::Name,
            Ok(key) if ARGUMENTS.contains(&key) && !self.has_arguments => Key::Arguments,
            _ => Key::Other,
        }
    }

    /// Reads a character of a value.
    fn value(&mut self, character: char) -> Progress {
        let is_over = self.nesting.is_plain() && matches!(character, ',' | '}' | ']');
        if is_over {
            // The value was a number or a word; what ended it belongs to the object.
            let progress = self.end_value();
            return if progress == Progress::Open { self.step(character) } else { progress };
        }
        self.token.push(character);
        let has_ended = self.nesting.step(character);
        let is_text = self.token.starts_with('"');
        if self.key == Key::Arguments && !is_text {
            if !self.has_arguments {
                self.has_arguments = true;
                self.announce();
            }
            if !(self.nesting.is_plain() && character.is_whitespace()) {
                self.arguments.push(character);
            }
        }
        match has_ended {
            true => self.end_value(),
            false => Progress::Open,
        }
    }

    fn end_value(&mut self) -> Progress {
        self.place = Place::BehindValue;
        match self.key {
            Key::Name => match serde_json::from_str::<String>(&self.token) {
                Ok(name) if self.is_known(&name) => {
                    self.name = Some(name);
                    // The arguments may stand before the name.
                    if self.known.is_none() || self.has_arguments {
                        self.announce();
                    }
                }
                _ => return Progress::Broken,
            },
            Key::Arguments if self.token.starts_with('"') => {
                // Some models write the arguments as a string of JSON.
                let text = serde_json::from_str::<String>(&self.token);
                self.arguments.push_str(text.as_deref().unwrap_or(&self.token));
                self.has_arguments = true;
                self.announce();
            }
            Key::Arguments | Key::Other => {}
        }
        self.key = Key::Other;
        Progress::Open
    }

    fn is_known(&self, name: &str) -> bool {
        self.known.as_ref().is_none_or(|known| known.iter().any(|known| known == name))
    }

    fn announce(&mut self) {
        self.is_announced |= self.name.is_some();
    }

    fn end(&mut self) -> Progress {
        if !self.is_announced {
            return Progress::Broken;
        }
        if !self.has_arguments {
            self.arguments.push_str("{}");
        }
        Progress::Complete
    }
}
