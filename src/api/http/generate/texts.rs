//! Texts of the sequences of a generation, as they grow token by token.

use std::{sync::Arc, time::Instant};

use serde_json::{Value, json};
use tracing::Span;

use super::{keys::Keys, usage::Usage};
use crate::{
    api::layers::TimeLimit,
    input::{AnswerParts, AnswerText, CallFormat, Language, Part, PartsSpec, StopStrings},
    serve::{Finish, Generation, PlanSummary, Report, Sampled, SequenceEvent, ServeError, Timings},
    telemetry::GeneratedAttributes,
};

/// A generation whose tokens become text.
#[derive(Debug)]
pub(in crate::api) struct Texts {
    generation: Generation,
    language: Arc<Language>,
    /// Form of calls; `None` for an answer in which calls are text.
    calls: Option<CallFormat>,
    choices: Vec<Choice>,
    began: Instant,
    /// Limit on the time until the first token.
    limit: TimeLimit,
    keys: Keys,
    /// Span of the request. It ends no sooner than the texts, which it tells of.
    span: Span,
}

/// Text of a choice so far.
#[derive(Debug)]
struct Choice {
    text: AnswerText,
    parts: AnswerParts,
    num_tokens: usize,
    /// Number of tokens of the thought.
    num_thought: usize,
    first: Option<Instant>,
    timings: Option<Timings>,
    reason: Option<&'static str>,
}

/// Part of a choice.
#[derive(Debug, Default)]
pub(in crate::api) struct Piece {
    /// Index of the choice.
    pub(in crate::api) index: usize,
    /// Parts that were added to the answer.
    pub(in crate::api) parts: Vec<Part>,
    /// Token that was added, with its probabilities; `None` at the end.
    pub(in crate::api) token: Option<Sampled>,
    /// Reason why the choice ended, if it did.
    pub(in crate::api) finish: Option<Finish>,
    /// Whether the answer calls tools, with all arguments.
    pub(in crate::api) is_call: bool,
}

/// Parts that are looked for in the texts of an answer.
#[derive(Debug)]
pub(in crate::api) struct Reading {
    pub(super) stops: StopStrings,
    pub(super) parts: PartsSpec,
    /// Names of the request's keys.
    pub(super) keys: Keys,
}

impl Piece {
    /// Returns the text that was added, of an answer without other parts.
    pub(in crate::api) fn text(&self) -> String {
        let texts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Thought(_) | Part::Call { .. } | Part::Arguments { .. } => "",
        });
        texts.collect()
    }

    /// Returns the reason why the choice ended, in OpenAI's words, if it did.
    pub(in crate::api) fn reason(&self) -> Option<&'static str> {
        self.finish.map(|finish| reason_of(finish, self.is_call))
    }
}

fn reason_of(finish: Finish, is_call: bool) -> &'static str {
    match finish {
        Finish::Stop if is_call => "tool_calls",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

impl Texts {
    /// Creates the texts of `generation`, which are read as `reading` says. The first token lifts
    /// `limit`.
    pub(super) fn new(
        generation: Generation,
        language: Arc<Language>,
        reading: &Reading,
        limit: TimeLimit,
    ) -> Self {
        let choice = || Choice {
            text: AnswerText::new(&reading.stops),
            parts: AnswerParts::new(reading.parts.clone()),
            num_tokens: 0,
            num_thought: 0,
            first: None,
            timings: None,
            reason: None,
        };
        let choices = (0..generation.num_sequences()).map(|_| choice()).collect();
        let span = Span::current();
        span.record("plan", &generation.plan.plan);
        let calls = reading.parts.calls;
        Self {
            generation,
            language,
            calls,
            choices,
            began: Instant::now(),
            limit,
            keys: reading.keys,
            span,
        }
    }

    /// Returns the form of calls; `None` for an answer in which calls are text.
    pub(super) fn calls(&self) -> Option<CallFormat> {
        self.calls
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
                self.limit.lift();
                choice.num_tokens += 1;
                choice.first.get_or_insert_with(Instant::now);
                let added = choice.text.push(self.language.coder.bytes(sampled.token));
                let was_thought = choice.parts.is_in_thought();
                let mut parts = choice.parts.push(&added.text);
                choice.num_thought += usize::from(was_thought || choice.parts.is_in_thought());
                let finish = added.stop.map(|_| Finish::Stop);
                if let Some(finish) = finish {
                    parts.extend(choice.parts.finish());
                    choice.reason = Some(reason_of(finish, choice.parts.is_call()));
                    let timings = self.timings_of(index);
                    self.choices[index].timings = Some(timings);
                    self.generation.stop(index, timings);
                }
                let is_call = self.choices[index].parts.is_call();
                Ok(Some(Piece { index, parts, token: Some(sampled), finish, is_call }))
            }
            SequenceEvent::Ended(finish, timings) => {
                choice.timings = Some(timings);
                let text = choice.text.finish();
                let mut parts = choice.parts.push(&text);
                parts.extend(choice.parts.finish());
                let is_call = choice.parts.is_call();
                choice.reason = Some(reason_of(finish, is_call));
                Ok(Some(Piece { index, parts, token: None, finish: Some(finish), is_call }))
            }
            SequenceEvent::Failed(error) => Err(self.keys.renamed(error)),
        }
    }

    /// Returns the counts and times of all choices.
    pub(super) fn usage(&self) -> Usage {
        let timings = (0..self.choices.len())
            .map(|index| self.choices[index].timings.unwrap_or_else(|| self.timings_of(index)));
        let num_thought = self.choices.iter().map(|choice| choice.num_thought).sum();
        Usage::new(self.generation.num_prompt(), num_thought, timings)
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

/// Writes token counts and times to the request's span, also if the client left.
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
