//! Constraints on answers: only tokens are drawn that keep a grammar.
//!
//! Start at [`Grammars`], one for each vocabulary.

mod answer;
mod grammar;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::json;

use self::answer::{Marks, spaced};
pub use self::grammar::{
    AnswerGrammar, CallGrammar, CallableFunction, Grammar, GrammarError, Other,
};
use super::sampling::AllowMask;
use crate::input::{MARKS, TextCoder};

/// Most bytes of a schema, an expression or a grammar.
const MAX_GRAMMAR_BYTES: usize = 64 * 1024;

/// Most choices of a request.
const MAX_CHOICES: usize = 1000;

/// Name of the library for a state in which no token is allowed.
const DEAD_END: &str = "NoExtensionBias";

/// First byte of the special tokens in the trie of a vocabulary; no text has it.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// Grammars over the tokens of a vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    ends: Vec<u32>,
    marks: Marks,
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
        let special = |mark| coder.id_of(mark).filter(|id| coder.is_special(*id));
        let marks = MARKS.into_iter();
        let marks = marks.filter_map(|mark| special(mark).map(|id| (mark, id))).collect();
        Ok(Self { factory, ends: coder.ends().to_vec(), marks: Marks(marks) })
    }

    /// Creates the constraint that an answer keeps `grammar`.
    ///
    /// # Errors
    ///
    /// Fails when `grammar` is too large, not valid or not supported.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let what = grammar.name();
        let own = compiled(grammar, &self.marks)?;
        let parser = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(own)));
        let wrong = |reason: String| GrammarError::Invalid { what, reason };
        let parser = parser.map_err(|_| wrong("it is not supported".into()))?;
        let mut matcher = Matcher::new(parser);
        if let Some(reason) = matcher.get_error() {
            return Err(wrong(reason));
        }
        let _ = matcher.grammar_warnings();
        // A grammar that no text keeps is refused now, not in the middle of a step.
        matcher.compute_mask_or_eos().map_err(|error| wrong(reason_of(&error)))?;
        Ok(Constraint { matcher, mask: SimpleVob::new(), ends: self.ends.clone() })
    }
}

/// Returns `grammar` in the library's form.
fn compiled(grammar: &Grammar, marks: &Marks) -> Result<TopLevelGrammar, GrammarError> {
    let bounded = |text: String| match text.len() {
        found if found > MAX_GRAMMAR_BYTES => {
            let limit = MAX_GRAMMAR_BYTES;
            Err(GrammarError::Large { what: "the number of its bytes", found, limit })
        }
        _ => Ok(text),
    };
    Ok(match grammar {
        Grammar::JsonObject => {
            TopLevelGrammar::from_json_schema(spaced(&json!({"type": "object"})))
        }
        Grammar::JsonSchema(schema) => {
            bounded(schema.to_string())?;
            TopLevelGrammar::from_json_schema(spaced(schema))
        }
        Grammar::Regex(pattern) => TopLevelGrammar::from_regex(&bounded(pattern.clone())?),
        Grammar::Choice(choices) => {
            let (found, limit) = (choices.len(), MAX_CHOICES);
            if found > limit {
                return Err(GrammarError::Large { what: "the number of choices", found, limit });
            }
            let choices: Vec<String> = choices.iter().map(|choice| escaped(choice)).collect();
            TopLevelGrammar::from_regex(&bounded(choices.join("|"))?)
        }
        Grammar::Lark(text) => TopLevelGrammar::from_lark(bounded(text.clone())?),
        Grammar::Answer(own) => {
            let form = match &own.other {
                Other::Form(form) => compiled(form, marks)?.grammars.into_iter().next(),
                Other::Nothing | Other::Text => None,
            };
            answer::compiled(own, form, marks)?
        }
    })
}

/// Returns the regular expression of `text` alone.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        // `\<` and `\>` are borders of words.
        if character.is_ascii_punctuation() && !matches!(character, '<' | '>') {
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
    GrammarError::Broken { reason: reason_of(error) }
}

/// Returns the reason of an error of the library, in plain words where it has none.
fn reason_of(error: &impl ToString) -> String {
    let reason = error.to_string();
    match reason.contains(DEAD_END) {
        true => "no text of the model's tokens keeps it from here on; a part may contain itself \
                 without an end"
            .to_owned(),
        false => reason,
    }
}

#[cfg(test)]
#[path = "constraint_tests.rs"]
mod tests;
