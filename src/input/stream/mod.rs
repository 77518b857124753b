//! Text of an answer while it grows: whole characters, up to a stop string.
//!
//! Knows no tokens, only their bytes. Start at [`AnswerText`].

mod characters;
mod stop;

pub use self::stop::{StopError, StopStrings};
use self::{characters::Characters, stop::StopFinder};

/// Text of an answer, token by token.
///
/// All texts that [`push`](Self::push) and [`finish`](Self::finish) return, put together, are the
/// answer: without the stop string and what follows it.
#[derive(Debug)]
pub struct AnswerText {
    finder: StopFinder,
    characters: Characters,
    has_stopped: bool,
}

/// Text that a token added to an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Added {
    /// Text that is certain now: no later token changes it.
    pub text: String,
    /// Index of the stop string that ended the answer, or None if it goes on.
    pub stop: Option<usize>,
}

impl AnswerText {
    /// Creates an empty answer that ends before any of `stops`.
    #[must_use]
    pub fn new(stops: &StopStrings) -> Self {
        let finder = StopFinder::new(stops.clone());
        Self { finder, characters: Characters::default(), has_stopped: false }
    }

    /// Adds the bytes of a token. Once stopped, nothing is added.
    pub fn push(&mut self, bytes: &[u8]) -> Added {
        if self.has_stopped {
            return Added::default();
        }
        let found = self.finder.push(bytes);
        let mut text = self.characters.push(&found.bytes);
        if found.stop.is_some() {
            self.has_stopped = true;
            text.push_str(&self.characters.finish());
        }
        Added { text, stop: found.stop }
    }

    /// Returns the text that was held back because it could have begun a stop string or was not a
    /// whole character.
    pub fn finish(&mut self) -> String {
        if self.has_stopped {
            return String::new();
        }
        self.has_stopped = true;
        let held = self.finder.finish();
        let mut text = self.characters.push(&held);
        text.push_str(&self.characters.finish());
        text
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
