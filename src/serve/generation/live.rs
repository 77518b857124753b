//! Sequences of a generator while they live.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc::Sender;

use super::{
    constraint::{Constraint, GrammarError},
    kept::Reader,
    sampling::{Draw, History, Sampled, Sampler, Sampling},
    steps::Asked,
    stream::{Finish, SequenceEvent, Timings},
};
use crate::{
    plan::Plan,
    runtime::Sequence,
    serve::{
        error::ServeError,
        observe::{Ending, SequenceReport},
    },
};

/// Sequence that is to be generated.
#[derive(Debug)]
pub(crate) struct NewSequence {
    /// Tokens of the prompt, at least one.
    pub(crate) prompt: Vec<u32>,
    /// Most tokens to generate.
    pub(crate) max_tokens: usize,
    /// Tokens that end the sequence.
    pub(crate) ends: Arc<[u32]>,
    pub(crate) sampling: Arc<Sampling>,
    /// Index of the sequence among those of its request.
    pub(crate) answer: u64,
    /// Grammar that the sequence keeps, or `None`.
    pub(crate) constraint: Option<Constraint>,
    /// Plan of every step, and its id.
    pub(crate) plan: Plan,
    pub(crate) plan_id: String,
    /// Client whose share counts, and priority.
    pub(crate) client: u64,
    pub(crate) priority: u32,
    /// Time at which the request arrived.
    pub(crate) arrival: Instant,
    /// Receiver of events. It holds at most `max_tokens` and one more; if it is closed, the
    /// sequence ends at the next step.
    pub(crate) events: Sender<SequenceEvent>,
}

/// Sequence that lives.
#[derive(Debug)]
pub(super) struct Live {
    new: NewSequence,
    /// Prompt, which is moved here, and generated tokens.
    pub(super) tokens: Vec<u32>,
    num_prompt: usize,
    /// Caches, which a preempted sequence gives up.
    pub(super) sequence: Option<Sequence>,
    /// Time of the first step, of the first token, and of the last one.
    began: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Reason of the end, unless the sequence lives or nobody took more tokens.
    ending: Option<Ending>,
    num_cached: usize,
    history: Option<History>,
}

impl Live {
    pub(super) fn new(mut new: NewSequence) -> Self {
        let tokens = std::mem::take(&mut new.prompt);
        let history = new.sampling.has_penalties().then(|| History::new(&tokens));
        Self {
            new,
            num_prompt: tokens.len(),
            tokens,
            sequence: None,
            began: None,
            first: None,
            last: None,
            ending: None,
            num_cached: 0,
            history,
        }
    }

    pub(super) fn asked(&self) -> Asked {
        let NewSequence { client, priority, .. } = self.new;
        Asked { client, priority, num_prompt: self.num_prompt }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.new.plan
    }

    /// Returns the prompt as a reader of kept caches.
    pub(super) fn reader(&self) -> Reader<'_> {
        let NewSequence { client, plan, .. } = &self.new;
        Reader { client: *client, path: &plan.path, tokens: &self.tokens[..self.num_prompt] }
    }

    /// Returns the number of tokens in the cache.
    pub(super) fn position(&self) -> usize {
        self.sequence.as_ref().map_or(0, Sequence::position)
    }

    fn num_generated(&self) -> usize {
        self.tokens.len() - self.num_prompt
    }

    /// Returns whether no one waits for the sequence any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.new.events.is_closed()
    }

    /// Notes that tokens of the prompt were found in a cache. What a preempted sequence finds later
    /// may be its own.
    pub(super) fn found(&mut self, num_cached: usize) {
        if self.began.is_none() {
            self.num_cached = num_cached;
        }
    }

    /// Notes that a step with tokens of the sequence begins at `now`.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// Draws the token after the last one. Returns whether the sequence goes on.
    ///
    /// # Errors
    ///
    /// Fails when nothing can be drawn.
    pub(super) fn extend(
        &mut self,
        sampler: &mut Sampler,
        logits: &[f32],
        now: Instant,
    ) -> Result<bool, ServeError> {
        let sampled = self.draw(sampler, logits)?;
        self.first.get_or_insert(now);
        self.last = Some(now);
        let token = sampled.token;
        if self.new.ends.contains(&token) {
            self.end(Finish::Stop);
            return Ok(false);
        }
        self.tokens.push(token);
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        let is_gone = self.send(SequenceEvent::Token(sampled));
        let is_complete = match &mut self.new.constraint {
            Some(constraint) => {
                constraint.push(token).map_err(|error| broken(&error))?;
                constraint.is_complete()
            }
            None => false,
        };
        let is_full = self.num_generated() >= self.new.max_tokens;
        if is_complete || is_full {
            self.end(if is_complete { Finish::Stop } else { Finish::Length });
            return Ok(false);
        }
        Ok(!is_gone)
    }

    fn draw(&mut self, sampler: &mut Sampler, logits: &[f32]) -> Result<Sampled, ServeError> {
        let position = self.num_generated();
        let constraint = self.new.constraint.as_mut().map(Constraint::allowed);
        let allowed = constraint.transpose().map_err(|error| broken(&error))?;
        let draw = Draw {
            sampling: &self.new.sampling,
            history: self.history.as_ref(),
            allowed,
            answer: self.new.answer,
            position: position as u64,
        };
        let plan = || self.new.plan_id.clone();
        sampler.sample(logits, &draw).map_err(|_| ServeError::NotFinite { plan: plan() })
    }

    /// Ends the sequence with an error.
    pub(super) fn fail(&mut self, error: ServeError) {
        self.ending = Some(Ending::Failed);
        self.send(SequenceEvent::Failed(error));
    }

    fn end(&mut self, finish: Finish) {
        self.ending = Some(Ending::Finished(finish));
        self.send(SequenceEvent::Ended(finish, self.timings()));
    }

    fn timings(&self) -> Timings {
        let span = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map(|(from, to)| to.saturating_duration_since(from)).unwrap_or_default()
        };
        Timings {
            num_cached: self.num_cached,
            num_prompt: self.num_prompt,
            queue: span(Some(self.new.arrival), self.began),
            prefill: span(self.began, self.first),
            num_generated: self.num_generated(),
            decode: span(self.first, self.last),
        }
    }

    /// Returns the report on the sequence, which has ended at `now`.
    pub(super) fn report(&self, now: Instant) -> SequenceReport {
        let since_arrival = |time: Instant| time.saturating_duration_since(self.new.arrival);
        SequenceReport {
            ending: self.ending.unwrap_or(Ending::Closed),
            timings: self.timings(),
            first_token: self.first.map(since_arrival),
            total: since_arrival(now),
        }
    }

    /// Sends an event. Returns whether no one waits for it.
    fn send(&self, event: SequenceEvent) -> bool {
        self.new.events.try_send(event).is_err()
    }
}

/// Returns the error for a grammar that cannot be kept any more.
fn broken(error: &GrammarError) -> ServeError {
    ServeError::Input { name: "response_format".to_owned(), reason: error.to_string() }
}
