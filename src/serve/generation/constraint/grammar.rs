//! Forms of answers, and errors of those that cannot be kept.

use serde_json::Value;

use crate::input::CallFormat;

/// Form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON object of any fields.
    JsonObject,
    /// A JSON value of a schema.
    JsonSchema(Value),
    /// A text that a regular expression takes as a whole.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
    /// A text of a grammar in the manner of Lark.
    Lark(String),
    /// A text with parts, such as calls of functions.
    Answer(AnswerGrammar),
}

/// Error of a grammar that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A grammar that is too long, or choices that are too many.
    #[error("{what} is {found}; valid is up to {limit}")]
    Large {
        /// Name of what is too large.
        what: &'static str,
        /// Its size.
        found: usize,
        /// Largest size.
        limit: usize,
    },
    /// A grammar that is not valid or not supported.
    #[error("the {what} is not valid: {reason}")]
    Invalid {
        /// Kind of the grammar.
        what: &'static str,
        /// Reason.
        reason: String,
    },
    /// A token that the grammar does not allow, or a grammar that takes too long.
    #[error("the answer cannot keep its grammar: {reason}")]
    Broken {
        /// Reason.
        reason: String,
    },
}

/// Form of an answer with parts.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerGrammar {
    /// Whether the answer begins in a thought, which ends before all else.
    pub in_thought: bool,
    /// Calls of functions, or `None` if none may be called.
    pub calls: Option<CallGrammar>,
    /// Other forms of the answer.
    pub other: Other,
}

/// Form of an answer that calls no function.
#[derive(Debug, Clone, PartialEq)]
pub enum Other {
    /// Nothing: a function must be called.
    Nothing,
    /// Any text, also before calls.
    Text,
    /// A text of a form.
    Form(Box<Grammar>),
}

/// Form of calls of functions.
#[derive(Debug, Clone, PartialEq)]
pub struct CallGrammar {
    /// Form in which the model writes calls.
    pub format: CallFormat,
    /// Functions of which any may be called, at least one.
    pub functions: Vec<CallableFunction>,
    /// Whether an answer may have several calls.
    pub is_parallel: bool,
}

/// Function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct CallableFunction {
    /// Name, of letters, digits, `_` and `-`.
    pub name: String,
    /// JSON schema of the arguments.
    pub parameters: Value,
}

impl Grammar {
    /// Returns the kind of the grammar in the words of an error.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
            Self::Lark(_) => "grammar",
            Self::Answer(AnswerGrammar { calls: None, other: Other::Form(form), .. }) => {
                form.name()
            }
            Self::Answer(_) => "JSON schema of a tool",
        }
    }

    /// Returns the key of a request under which the grammar is known.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Answer(AnswerGrammar { calls: Some(_), .. }) => "tools",
            _ => "response_format",
        }
    }
}
