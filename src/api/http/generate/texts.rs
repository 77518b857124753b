//! Texts of the sequences of a generation, as they grow token by token.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};
use tracing::Span;

use super::usage::Usage;
use crate::{
    input::{AnswerText, Language, StopStrings},
    serve::{Finish, Generation, PlanSummary, Report, Sampled, SequenceEvent, ServeError, Timings},
    telemetry::GeneratedAttributes,
};

/// A generation whose tokens become text.
#[derive(Debug)]
pub(in crate::api) struct Texts {
    generation: Generation,
    language: Arc<Language>,
    choices: Vec<Choice>,
    began: Instant,
    /// Span of the request. It ends no sooner than the texts, which it tells of.
    span: Span,
}

/// Text of a choice so far.
#[derive(Debug)]
struct Choice {
    text: AnswerText,
    num_tokens: usize,
    first: Option<Instant>,
    timings: Option<Timings>,
    reason: Option<&'static str>,
}

/// Part of a choice.
#[derive(Debug, Default)]
pub(in crate::api) struct Piece {
    /// Index of the choice.
    pub(in crate::api) index: usize,
    /// Text that was added.
    pub(in crate::api) text: String,
    /// Token that was added, with its probabilities; `None` at the end.
    pub(in crate::api) token: Option<Sampled>,
    /// Reason why the choice ended, if it did.
    pub(in crate::api) finish: Option<Finish>,
}

impl Piece {
    /// Returns the reason why the choice ended, in OpenAI's words, if it did.
    pub(in crate::api) fn reason(&self) -> Option<&'static str> {
        self.finish.map(reason_of)
    }
}

fn reason_of(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

impl Texts {
    /// Creates the texts of `generation`, which end at the strings `stops`.
    pub(super) fn new(
        generation: Generation,
        language: Arc<Language>,
        stops: &StopStrings,
    ) -> Self {
        let choice = || Choice {
            text: AnswerText::new(stops),
            num_tokens: 0,
            first: None,
            timings: None,
            reason: None,
        };
        let choices = (0..generation.num_sequences()).map(|_| choice()).collect();
        let span = Span::current();
        span.record("plan", &generation.plan.plan);
        Self { generation, language, choices, began: Instant::now(), span }
    }

    /// Returns the number of choices.
    pub(in crate::api) fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// Returns the number of tokens of the prompt.
    pub(in crate::api) fn num_prompt(&self) -> usize {
        self.generation.num_prompt()
    }

    /// Returns the language of the model.
    pub(in crate::api) fn language(&self) -> &Language {
        &self.language
    }

    /// Returns the report of how the request is answered.
    pub(in crate::api) fn plan_report(&self) -> Value {
        let PlanSummary { plan, quality, .. } = &self.generation.plan;
        json!({"plan": plan, "quality": quality.value})
    }

    /// Returns the report of a request that is answered, or `None` before the end.
    pub(in crate::api) fn report(&self) -> Option<&Report> {
        self.generation.report()
    }

    /// Returns the next part of any choice, or `None` after the last.
    ///
    /// # Errors
    ///
    /// Fails when a sequence does.
    ///
    /// # Cancel safety
    ///
    /// No part is lost when the future is dropped.
    pub(in crate::api) async fn next(&mut self) -> Result<Option<Piece>, ServeError> {
        let Some((index, event)) = self.generation.next().await? else { return Ok(None) };
        let choice = &mut self.choices[index];
        match event {
            SequenceEvent::Token(sampled) => {
                choice.num_tokens += 1;
                choice.first.get_or_insert_with(Instant::now);
                let added = choice.text.push(self.language.coder.bytes(sampled.token));
                let finish = added.stop.map(|_| Finish::Stop);
                choice.reason = finish.map(reason_of);
                if finish.is_some() {
                    let timings = self.timings_of(index);
                    self.choices[index].timings = Some(timings);
                    self.generation.stop(index, timings);
                }
                Ok(Some(Piece { index, text: added.text, token: Some(sampled), finish }))
            }
            SequenceEvent::Ended(finish, timings) => {
                choice.timings = Some(timings);
                choice.reason = Some(reason_of(finish));
                let text = choice.text.finish();
                Ok(Some(Piece { index, text, token: None, finish: Some(finish) }))
            }
            SequenceEvent::Failed(error) => Err(error),
        }
    }

    /// Returns the counts and times of all choices.
    pub(super) fn usage(&self) -> Usage {
        let timings = (0..self.choices.len())
            .map(|index| self.choices[index].timings.unwrap_or_else(|| self.timings_of(index)));
        Usage::new(self.generation.num_prompt(), timings)
    }

    /// Returns the times of a choice that was stopped here.
    fn timings_of(&self, index: usize) -> Timings {
        let Choice { num_tokens, first, .. } = &self.choices[index];
        let first = first.unwrap_or_else(Instant::now);
        Timings {
            num_prompt: self.generation.num_prompt(),
            prefill: first - self.began,
            num_generated: *num_tokens,
            decode: first.elapsed(),
            ..Timings::default()
        }
    }
}

/// Tells the span of the request what was generated, also if the client left.
impl Drop for Texts {
    fn drop(&mut self) {
        let cached = self.choices.iter().filter_map(|choice| choice.timings);
        let told = GeneratedAttributes {
            num_input: self.generation.num_prompt(),
            num_cached: cached.map(|timings| timings.num_cached).max().unwrap_or_default(),
            num_output: self.choices.iter().map(|choice| choice.num_tokens).sum(),
            reasons: self.choices.iter().filter_map(|choice| choice.reason).collect(),
        };
        told.set(&self.span);
    }
}
