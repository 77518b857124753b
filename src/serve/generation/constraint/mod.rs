//! Constraints on answers: only tokens are drawn that keep a grammar.
//!
//! Start at [`Grammars`], one for each vocabulary.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};

use super::sampling::AllowMask;
use crate::input::TextCoder;

/// Most bytes of a schema, an expression or a grammar.
const MAX_GRAMMAR_BYTES: usize = 64 * 1024;

/// Most choices of a request.
const MAX_CHOICES: usize = 1000;

/// First byte of the special tokens in the trie of a vocabulary; no text has it.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

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

/// Grammars over the tokens of a vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    ends: Vec<u32>,
}

impl Grammars {
    /// Creates the grammars over the vocabulary of `coder`.
    ///
    /// # Errors
    ///
    /// Fails when the vocabulary has no token that ends an answer.
    pub fn new(coder: &TextCoder) -> Result<Self, GrammarError> {
        let wrong = |reason: String| GrammarError::Invalid { what: "vocabulary", reason };
        let end = coder.ends().first().copied();
        let end = end.ok_or_else(|| wrong("it has no token that ends an answer".into()))?;
        let word = |id: u32| match coder.is_special(id) || coder.ends().contains(&id) {
            true => [&[SPECIAL], coder.bytes(id)].concat(),
            false => coder.bytes(id).to_vec(),
        };
        let words: Vec<Vec<u8>> = coder.ids().map(word).collect();
        let vocabulary = TokRxInfo {
            vocab_size: coder.ids().end,
            tok_eos: end,
            tok_bos: None,
            tok_pad: None,
            tok_unk: None,
            tok_end_of_turn: None,
        };
        let trie = TokTrie::from(&vocabulary, &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| wrong(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, ends: coder.ends().to_vec() })
    }

    /// Creates the constraint that an answer keeps `grammar`.
    ///
    /// # Errors
    ///
    /// Fails when `grammar` is too large, not valid or not supported.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let what = grammar.name();
        let own = grammar.compiled()?;
        let parser = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(own)));
        let wrong = |reason: String| GrammarError::Invalid { what, reason };
        let parser = parser.map_err(|_| wrong("it is not supported".into()))?;
        let mut matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(reason) => Err(wrong(reason)),
            None => {
                let _ = matcher.grammar_warnings();
                Ok(Constraint { matcher, mask: SimpleVob::new(), ends: self.ends.clone() })
            }
        }
    }
}

impl Grammar {
    /// Returns the kind of the grammar in the words of an error.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
            Self::Lark(_) => "grammar",
        }
    }

    /// Returns the grammar in the library's form.
    fn compiled(&self) -> Result<TopLevelGrammar, GrammarError> {
        let bounded = |text: String| match text.len() {
            found if found > MAX_GRAMMAR_BYTES => {
                let limit = MAX_GRAMMAR_BYTES;
                Err(GrammarError::Large { what: "the number of its bytes", found, limit })
            }
            _ => Ok(text),
        };
        Ok(match self {
            Self::JsonObject => {
                TopLevelGrammar::from_json_schema(spaced(&json!({"type": "object"})))
            }
            Self::JsonSchema(schema) => {
                bounded(schema.to_string())?;
                TopLevelGrammar::from_json_schema(spaced(schema))
            }
            Self::Regex(pattern) => TopLevelGrammar::from_regex(&bounded(pattern.clone())?),
            Self::Choice(choices) => {
                let (found, limit) = (choices.len(), MAX_CHOICES);
                if found > limit {
                    return Err(GrammarError::Large {
                        what: "the number of choices",
                        found,
                        limit,
                    });
                }
                let choices: Vec<String> = choices.iter().map(|choice| escaped(choice)).collect();
                TopLevelGrammar::from_regex(&bounded(choices.join("|"))?)
            }
            Self::Lark(text) => TopLevelGrammar::from_lark(bounded(text.clone())?),
        })
    }
}

/// Returns `schema` with white space as models write it: one after a comma or a colon. Without a
/// bound, an answer could be white space for ever.
fn spaced(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields.clone(),
        other => [("allOf".to_owned(), json!([other]))].into_iter().collect(),
    };
    let style =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.insert("x-guidance".into(), style);
    Value::Object(schema)
}

/// Returns the regular expression of `text` alone.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// Constraint of one answer, at the token that comes next.
pub struct Constraint {
    matcher: Matcher,
    mask: SimpleVob,
    ends: Vec<u32>,
}

impl Constraint {
    /// Returns the tokens that may come next. Once the grammar is complete, these end the answer.
    ///
    /// # Errors
    ///
    /// Fails when the grammar takes too long.
    pub fn allowed(&mut self) -> Result<AllowMask<'_>, GrammarError> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|error| broken(&error))?;
        if self.ends.iter().any(|end| self.mask.is_allowed(*end)) {
            self.ends.iter().for_each(|end| self.mask.allow_token(*end));
        }
        Ok(AllowMask(self.mask.as_slice()))
    }

    /// Goes on behind `token`. A token that ends the answer changes nothing.
    ///
    /// # Errors
    ///
    /// Fails when the grammar does not allow `token`.
    pub fn push(&mut self, token: u32) -> Result<(), GrammarError> {
        match self.ends.contains(&token) {
            true => Ok(()),
            false => self.matcher.consume_token(token).map_err(|error| broken(&error)),
        }
    }

    /// Returns another constraint at the same token, which shares nothing with this one.
    pub fn copied(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), mask: SimpleVob::new(), ends: self.ends.clone() }
    }

    /// Returns whether the answer is complete: nothing may follow it.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammars").finish_non_exhaustive()
    }
}

fn broken(error: &impl ToString) -> GrammarError {
    GrammarError::Broken { reason: error.to_string() }
}

#[cfg(test)]
#[path = "constraint_tests.rs"]
mod tests;
