//! Parts of an answer while it grows: its thought, its text, and its calls of functions.
//!
//! Knows no tokens, only the text that they make. Start at [`AnswerParts`].

mod call;
mod format;
mod spec;

use self::call::{CallReader, Progress};
pub use self::{format::CallFormat, spec::PartsSpec};

/// Text that ends a thought.
pub const THOUGHT_END: &str = "</think>";

/// Texts around a thought.
pub(super) const THOUGHT: [&str; 2] = ["<think>", THOUGHT_END];

/// Texts between parts of an answer that may be special tokens of a vocabulary.
pub const MARKS: [&str; 4] = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", THOUGHT_END];

/// Token that may stand before a call of Llama's.
const PYTHON_TAG: &str = "<|python_tag|>";

/// Part that was added to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text of the thought.
    Thought(String),
    /// Text of the answer.
    Text(String),
    /// Start of a call.
    Call {
        /// Index of the call in the answer.
        index: usize,
        /// Name of the function.
        name: String,
    },
    /// JSON text of a call's arguments.
    Arguments {
        /// Index of the call in the answer.
        index: usize,
        /// Text that was added.
        text: String,
    },
}

/// Parts of an answer, text by text.
///
/// White space around a thought and before a call belongs to no part.
#[derive(Debug)]
pub struct AnswerParts {
    spec: PartsSpec,
    state: State,
    /// Text that later text may give another meaning.
    held: String,
    /// Text since the mark of calls, as long as it may turn out to be no call.
    raw: String,
    num_calls: usize,
    /// Whether no mark stands before the call that may begin.
    is_bare: bool,
    /// Whether the last call has all of its arguments.
    is_whole: bool,
}

#[derive(Debug)]
enum State {
    /// Before everything: a thought or a call may begin.
    Start,
    /// In a thought, of which nothing was read yet or something was.
    Thought { is_empty: bool },
    /// Behind a thought: white space is left out, and a call may begin.
    Behind,
    /// In text.
    Text,
    /// Behind a mark of calls, or between calls.
    Between,
    /// In the JSON of a call.
    Call(CallReader),
}

impl AnswerParts {
    /// Creates an answer without parts.
    #[must_use]
    pub fn new(spec: PartsSpec) -> Self {
        let state = match (spec.in_thought, spec.thinks, spec.calls) {
            (true, ..) => State::Thought { is_empty: true },
            (false, true, _) => State::Start,
            (_, _, Some(format)) if format.may_be_bare() => State::Start,
            _ => State::Text,
        };
        let (held, raw) = (String::new(), String::new());
        Self { spec, state, held, raw, num_calls: 0, is_bare: false, is_whole: true }
    }

    /// Returns whether the answer is in its thought.
    pub fn is_in_thought(&self) -> bool {
        matches!(self.state, State::Thought { .. })
    }

    /// Returns whether the answer calls functions, with all arguments.
    pub fn is_call(&self) -> bool {
        self.num_calls > 0 && self.is_whole
    }

    /// Adds `text` and returns the parts that are certain now.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        self.held.push_str(text);
        while !self.held.is_empty() && self.step(&mut parts) {}
        parts
    }

    /// Returns the parts that were held back.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = std::mem::take(&mut self.held);
        match &self.state {
            State::Thought { .. } => add(&mut parts, Part::Thought(held.trim_end().to_owned())),
            State::Call(reader) if reader.is_announced() => {}
            State::Start | State::Behind | State::Text | State::Between | State::Call(_) => {
                let text = std::mem::take(&mut self.raw) + &held;
                let is_apart = self.num_calls > 0 || matches!(self.state, State::Behind);
                if !is_apart || !text.trim().is_empty() {
                    add(&mut parts, Part::Text(text));
                }
            }
        }
        self.state = State::Text;
        parts
    }

    /// Reads from what is held. Returns whether there may be more to read.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Start | State::Behind => self.begin(),
            State::Thought { .. } => self.think(parts),
            State::Text => self.talk(parts),
            State::Between => self.between(parts),
            State::Call(_) => self.call(parts),
        }
    }

    /// Finds out what the answer begins with, if that is certain.
    fn begin(&mut self) -> bool {
        let start = self.held.trim_start();
        let is_behind = matches!(self.state, State::Behind);
        let is_llama = self.spec.calls == Some(CallFormat::Llama);
        let may_be_call = self.spec.calls.is_some_and(CallFormat::may_be_bare);
        let [opening, _] = THOUGHT;
        let may_think = self.spec.thinks && !is_behind;
        if may_think && let Some(rest) = start.strip_prefix(opening) {
            self.held = rest.to_owned();
            self.state = State::Thought { is_empty: true };
            return true;
        }
        if start.is_empty() || (may_think && opening.starts_with(start)) {
            return false;
        }
        let tagged = start.strip_prefix(PYTHON_TAG).filter(|_| is_llama);
        if tagged.is_some() || (may_be_call && start.starts_with('{')) {
            let rest = tagged.unwrap_or(start).to_owned();
            let taken = self.held.len() - rest.len();
            self.raw = self.held[..taken].to_owned();
            self.held = rest;
            self.is_bare = true;
            self.state = State::Between;
            return true;
        }
        if is_llama && PYTHON_TAG.starts_with(start) {
            return false;
        }
        if is_behind {
            self.held = start.to_owned();
        }
        self.state = State::Text;
        true
    }

    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Thought { is_empty } = &mut self.state else { return false };
        if *is_empty {
            self.held.drain(..self.held.len() - self.held.trim_start().len());
        }
        let [_, closing] = THOUGHT;
        let (end, rest) = match self.held.find(closing) {
            Some(place) => (place, Some(place + closing.len())),
            None => (self.held.len() - num_begun(&self.held, closing), None),
        };
        let text = self.held[..end].trim_end();
        *is_empty &= text.is_empty();
        let taken = text.len();
        add(parts, Part::Thought(text.to_owned()));
        self.held.drain(..rest.unwrap_or(taken));
        if rest.is_some() {
            self.state = State::Behind;
        }
        rest.is_some()
    }

    fn talk(&mut self, parts: &mut Vec<Part>) -> bool {
        let mark = self.spec.calls.map(CallFormat::begin).filter(|mark| !mark.is_empty());
        let Some(mark) = mark else {
            let text = std::mem::take(&mut self.held);
            add(parts, Part::Text(text));
            return false;
        };
        let found = self.held.find(mark);
        let end = found.unwrap_or_else(|| self.held.len() - num_begun(&self.held, mark));
        let text = self.held[..end].trim_end();
        let taken = text.len();
        add(parts, Part::Text(text.to_owned()));
        if let Some(place) = found {
            self.raw = self.held[taken..place + mark.len()].to_owned();
            self.held.drain(..place + mark.len());
            self.is_bare = false;
            self.state = State::Between;
            return true;
        }
        self.held.drain(..taken);
        false
    }

    /// Reads what stands around calls: brackets and commas of a list, and the mark of their end.
    fn between(&mut self, parts: &mut Vec<Part>) -> bool {
        let rest = self.held.trim_start_matches(|c: char| c.is_whitespace() || "[,;".contains(c));
        let taken = self.held.len() - rest.len();
        let end = self.spec.calls.map(CallFormat::end).unwrap_or_default();
        if rest.starts_with('{') {
            // Without marks, an answer that is JSON is a call only of a function that there is.
            let known = self.is_bare.then(|| self.spec.functions.clone());
            self.raw.push_str(&self.held[..taken]);
            self.held.drain(..taken);
            self.state = State::Call(CallReader::new(known));
            return true;
        }
        let is_list = rest.starts_with(']');
        if is_list || (!end.is_empty() && rest.starts_with(end)) {
            let length = if is_list { 1 } else { end.len() };
            // Nothing was called: the marks are text.
            let text = std::mem::take(&mut self.raw);
            let is_called = text.is_empty();
            if !is_called {
                add(parts, Part::Text(text + &self.held[..taken + length]));
            }
            self.held.drain(..taken + length);
            // The mark may follow the list of calls.
            let has_mark = is_called && is_list && !end.is_empty();
            self.state = if has_mark { State::Between } else { State::Text };
            return true;
        }
        if rest.is_empty() || (!end.is_empty() && end.starts_with(rest)) {
            return false;
        }
        let text = std::mem::take(&mut self.raw);
        add(parts, Part::Text(text));
        self.state = State::Text;
        true
    }

    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Call(reader) = &mut self.state else { return false };
        let held = std::mem::take(&mut self.held);
        let was_announced = reader.is_announced();
        let index = self.num_calls - usize::from(was_announced);
        let (progress, taken) = reader.read(&held);
        if let Some(name) = reader.announced().filter(|_| !was_announced) {
            add(parts, Part::Call { index, name: name.to_owned() });
            (self.num_calls, self.is_whole) = (self.num_calls + 1, false);
            self.raw.clear();
        }
        let text = reader.take_arguments();
        add(parts, Part::Arguments { index, text });
        let is_announced = reader.is_announced();
        match progress {
            Progress::Open if !is_announced => self.raw.push_str(&held),
            Progress::Open => {}
            Progress::Complete => {
                (self.is_whole, self.state) = (true, State::Between);
            }
            // What was announced stays, without its end.
            Progress::Broken if is_announced => self.state = State::Between,
            Progress::Broken => {
                let text = std::mem::take(&mut self.raw) + &held[..taken];
                add(parts, Part::Text(text));
                self.state = State::Text;
            }
        }
        held[taken..].clone_into(&mut self.held);
        !matches!(progress, Progress::Open)
    }
}

/// Adds `part`, or its text to that of the last one, unless it has none.
fn add(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), part) {
        (_, Part::Thought(text) | Part::Text(text) | Part::Arguments { text, .. })
            if text.is_empty() => {}
        (Some(Part::Thought(last)), Part::Thought(text))
        | (Some(Part::Text(last)), Part::Text(text)) => last.push_str(&text),
        (_, part) => parts.push(part),
    }
}

/// Returns the number of bytes at the end of `text` with which `mark` may begin.
fn num_begun(text: &str, mark: &str) -> usize {
    let starts = mark.char_indices().map(|(place, _)| place).rev();
    starts.into_iter().find(|length| text.ends_with(&mark[..*length])).unwrap_or(0)
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
