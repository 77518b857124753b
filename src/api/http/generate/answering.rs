//! The answer as it grows: texts of the choices, token by token.

use std::{sync::Arc, time::Instant};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    fields::Form,
    head::Head,
    usage::{Counts, Times, Usage},
};
use crate::{
    input::{AnswerParts, AnswerText, CallFormat, Language, Part, PartsSpec, StopStrings},
    serve::{Finish, Generation, PlanSummary, Sampled, SequenceEvent, ServeError, Timings},
};

/// A generation whose tokens become text.
#[derive(Debug)]
pub(super) struct Answering {
    head: Head,
    generation: Generation,
    pub(super) language: Arc<Language>,
    pub(super) form: Form,
    /// Form of calls; `None` for an answer in which calls are text.
    pub(super) calls: Option<CallFormat>,
    choices: Vec<Choice>,
    began: Instant,
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
}

/// Fields of a whole answer beside its choices.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct About {
    #[serde(flatten)]
    head: Head,
    usage: Counts,
    timings: Times,
    /// Report of how the request was answered.
    tessera: Value,
}

/// Event of an answer.
#[derive(Debug, Serialize)]
pub(super) struct Chunk {
    #[serde(flatten)]
    head: Head,
    choices: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timings: Option<Times>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tessera: Option<Value>,
}

/// Part of a choice.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Index of the choice.
    pub(super) index: usize,
    /// Parts that were added to the answer.
    pub(super) parts: Vec<Part>,
    /// Token that was added, with its probabilities; `None` at the end.
    pub(super) token: Option<Sampled>,
    /// Reason why the choice ended, if it did.
    pub(super) finish: Option<Finish>,
    /// Whether the answer calls tools, with all arguments.
    pub(super) is_call: bool,
}

/// What the texts of an answer are read for.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) stops: StopStrings,
    pub(super) parts: PartsSpec,
}

impl Piece {
    /// Returns the text that was added, of an answer without other parts.
    pub(super) fn text(&self) -> String {
        let texts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Thought(_) | Part::Call { .. } | Part::Arguments { .. } => "",
        });
        texts.collect()
    }

    /// Returns the reason why the choice ended, in OpenAI's words, if it did.
    pub(super) fn reason(&self) -> Option<&'static str> {
        self.finish.map(|finish| match finish {
            Finish::Stop if self.is_call => "tool_calls",
            Finish::Stop => "stop",
            Finish::Length => "length",
        })
    }
}

impl Answering {
    pub(super) fn new(
        head: Head,
        generation: Generation,
        language: Arc<Language>,
        reading: &Reading,
        form: Form,
    ) -> Self {
        let choice = || Choice {
            text: AnswerText::new(&reading.stops),
            parts: AnswerParts::new(reading.parts.clone()),
            num_tokens: 0,
            num_thought: 0,
            first: None,
            timings: None,
        };
        let choices = (0..generation.num_sequences()).map(|_| choice()).collect();
        let calls = reading.parts.calls;
        Self { head, generation, language, form, calls, choices, began: Instant::now() }
    }

    /// Returns the number of choices.
    pub(super) fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// Returns the fields of a whole answer beside its choices.
    pub(super) fn about(&self) -> About {
        let Usage { counts, times } = self.usage();
        About { head: self.head.clone(), usage: counts, timings: times, tessera: self.report() }
    }

    /// Returns an event with `choices`.
    pub(super) fn chunk(&self, choices: Value) -> Chunk {
        Chunk { head: self.head.clone(), choices, usage: None, timings: None, tessera: None }
    }

    /// Returns the report of how the request is answered.
    pub(super) fn report(&self) -> Value {
        let PlanSummary { plan, quality, .. } = &self.generation.plan;
        json!({"plan": plan, "quality": quality.value})
    }

    /// Returns the next part of any choice, or `None` after the last.
    ///
    /// # Errors
    ///
    /// Fails when a sequence does.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, ServeError> {
        let Some((index, event)) = self.generation.next().await? else { return Ok(None) };
        let choice = &mut self.choices[index];
        match event {
            SequenceEvent::Token(sampled) => {
                choice.num_tokens += 1;
                choice.first.get_or_insert_with(Instant::now);
                let added = choice.text.push(self.language.coder.bytes(sampled.token));
                let was_thought = choice.parts.is_in_thought();
                let mut parts = choice.parts.push(&added.text);
                choice.num_thought += usize::from(was_thought || choice.parts.is_in_thought());
                let finish = added.stop.map(|_| Finish::Stop);
                if finish.is_some() {
                    parts.extend(choice.parts.finish());
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
                Ok(Some(Piece { index, parts, token: None, finish: Some(finish), is_call }))
            }
            SequenceEvent::Failed(error) => Err(error),
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
