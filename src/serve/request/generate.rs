//! Requests for generated sequences: their admission, and their events.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, channel};

use super::{PlanSummary, Report, service::FamilyService, ticket::Ticket};
use crate::{
    plan::{Budget, Shape},
    serve::{
        error::{ErrorCode, ServeError},
        generation::{Constraint, Grammar, NewSequence, Sampling, SequenceEvent, Timings},
        observe::Outcome,
        planner::Question,
    },
};

/// Request for the continuation of a prompt.
#[derive(Debug)]
pub struct GenerateRequest {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Choice of tokens.
    pub sampling: Sampling,
    /// Number of sequences, which draw by themselves.
    pub num_sequences: usize,
    /// Grammar that each sequence keeps, or `None`.
    pub grammar: Option<Grammar>,
    /// Most tokens to generate; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Tokens that end the sequence.
    pub ends: Vec<u32>,
    /// Limits on the plan.
    pub budget: Budget,
    /// Priority from 1, the first.
    pub priority: u32,
    /// Client whose share of the steps counts, and whose prompts may be found again.
    pub client: u64,
    /// Time at which the request arrived.
    pub arrival: Instant,
}

/// Sequences that are generated for a request. Dropping them ends them at the next step.
#[derive(Debug)]
pub struct Generation {
    ticket: Option<Ticket>,
    /// Plan of every step.
    pub plan: PlanSummary,
    /// Receivers of the sequences' events; `None` for one that has ended.
    sequences: Vec<Option<Receiver<SequenceEvent>>>,
    num_prompt: usize,
    timings: Vec<Timings>,
    /// Report of the request, once it is answered.
    report: Option<Report>,
}

impl FamilyService {
    /// Returns the most tokens of a prompt and its continuation together.
    pub fn context(&self) -> usize {
        self.manifest().limits.max_tokens
    }
}

impl Ticket {
    /// Admits a request for generated sequences.
    ///
    /// # Errors
    ///
    /// Fails where the family does not generate, and on an empty prompt. Fails on a prompt that
    /// leaves no room in the context, and on more tokens than the context holds. Fails on budgets
    /// that no plan meets, and when too many sequences wait.
    ///
    /// # Cancel safety
    ///
    /// A request whose future is dropped costs no step.
    pub async fn generate(mut self, request: GenerateRequest) -> Result<Generation, ServeError> {
        match admit(self.service(), request).await {
            Ok(mut generation) => {
                generation.ticket = Some(self);
                Ok(generation)
            }
            Err(error) => {
                self.end(&Outcome::Failed { code: error.code() });
                Err(error)
            }
        }
    }
}

async fn admit(
    service: &Arc<FamilyService>,
    request: GenerateRequest,
) -> Result<Generation, ServeError> {
    let name = service.name().to_owned();
    let state = "it does not generate";
    let generator = service.generator.as_ref();
    let generator = generator.ok_or(ServeError::Unavailable { name, state })?;
    let prompt = request.prompt;
    let max_tokens = room(service, prompt.len(), request.max_tokens)?;
    let num_words = service.num_words();
    if let Some(id) = prompt.iter().find(|id| i64::from(**id) >= num_words) {
        let reason = format!("{id} is no token; there are {num_words}");
        return Err(ServeError::Input { name: "prompt".to_owned(), reason });
    }
    // A budget of time is one of the answer, which ends when it has passed.
    let budget = Budget { latency: None, ..request.budget };
    let question =
        Question { shape: Shape::new(1, prompt.len()), budget: &budget, now: Instant::now() };
    let chosen = service.planner.plan_for(&question)?;
    let num_prompt = prompt.len();
    let mut sequences = Vec::new();
    let constraints: Vec<Option<Constraint>> = match request.grammar {
        Some(grammar) => {
            let constraints = service.constraints(grammar, request.num_sequences).await?;
            constraints.into_iter().map(Some).collect()
        }
        None => (0..request.num_sequences).map(|_| None).collect(),
    };
    let sampling = Arc::new(request.sampling);
    let ends: Arc<[u32]> = request.ends.into();
    let new = (0..).zip(constraints).map(|(answer, constraint)| {
        // Room for every token and the end: a step waits for no client.
        let (events, receiver) = channel(max_tokens + 1);
        sequences.push(Some(receiver));
        NewSequence {
            prompt: prompt.clone(),
            max_tokens,
            ends: ends.clone(),
            sampling: sampling.clone(),
            answer,
            constraint,
            plan: chosen.plan.clone(),
            plan_id: chosen.summary.plan.clone(),
            client: request.client,
            priority: request.priority,
            arrival: request.arrival,
            events,
        }
    });
    let new = new.collect();
    let full = |limit| ServeError::QueueFull { limit, retry_after: service.queue.backlog() };
    generator.add(new).map_err(full)?;
    service.queue.generate(service.key, generator.clone());
    let plan = chosen.summary;
    Ok(Generation { ticket: None, plan, sequences, num_prompt, timings: Vec::new(), report: None })
}

/// Returns the most tokens that are generated after a prompt of `num_prompt` tokens.
fn room(
    service: &FamilyService,
    num_prompt: usize,
    max_tokens: Option<usize>,
) -> Result<usize, ServeError> {
    let context = service.context();
    if num_prompt == 0 {
        let reason = "it is empty; at least one token is needed".to_owned();
        return Err(ServeError::Input { name: "prompt".to_owned(), reason });
    }
    if max_tokens == Some(0) {
        let reason = "it is 0, it must be at least 1".to_owned();
        return Err(ServeError::Input { name: "max_tokens".to_owned(), reason });
    }
    let left = context.saturating_sub(num_prompt);
    let wanted = max_tokens.unwrap_or(left.max(1));
    if left < wanted {
        return Err(ServeError::Context { context, num_prompt, max_tokens: wanted });
    }
    Ok(wanted)
}

impl Generation {
    /// Returns the number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Returns the number of tokens of the prompt.
    pub fn num_prompt(&self) -> usize {
        self.num_prompt
    }

    /// Returns the report of a request that is answered, or `None` before the last event was taken.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// Returns the next event of any sequence, with the sequence's index, or `None` after the last.
    ///
    /// # Errors
    ///
    /// Fails when a sequence does.
    ///
    /// # Cancel safety
    ///
    /// No event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<(usize, SequenceEvent)>, ServeError> {
        let found = poll_fn(|context| {
            let mut is_waiting = false;
            for (index, receiver) in self.sequences.iter_mut().enumerate() {
                let Some(open) = receiver else { continue };
                match open.poll_recv(context) {
                    Poll::Ready(event) => {
                        return Poll::Ready(Some((index, event)));
                    }
                    Poll::Pending => is_waiting = true,
                }
            }
            match is_waiting {
                true => Poll::Pending,
                false => Poll::Ready(None),
            }
        });
        let Some((index, event)) = found.await else {
            self.end();
            return Ok(None);
        };
        match event.unwrap_or(SequenceEvent::Failed(ServeError::WorkerGone)) {
            SequenceEvent::Failed(error) => {
                self.sequences.clear();
                if let Some(mut ticket) = self.ticket.take() {
                    ticket.end(&Outcome::Failed { code: error.code() });
                }
                Err(error)
            }
            SequenceEvent::Ended(finish, timings) => {
                self.sequences[index] = None;
                self.timings.push(timings);
                Ok(Some((index, SequenceEvent::Ended(finish, timings))))
            }
            token @ SequenceEvent::Token(_) => Ok(Some((index, token))),
        }
    }

    /// Ends a sequence before its time, such as after a stop string.
    pub fn stop(&mut self, index: usize, timings: Timings) {
        if let Some(receiver) = self.sequences.get_mut(index) {
            *receiver = None;
            self.timings.push(timings);
        }
    }

    /// Counts the request as answered.
    fn end(&mut self) {
        let Some(mut ticket) = self.ticket.take() else { return };
        let most = |span: fn(&Timings) -> Duration| {
            self.timings.iter().map(span).max().unwrap_or_default()
        };
        let queue = most(|timings| timings.queue);
        let compute = most(|timings| timings.prefill + timings.decode);
        let num_generated: usize = self.timings.iter().map(|timings| timings.num_generated).sum();
        let report = Report {
            plan: self.plan.clone(),
            batch: self.sequences.len(),
            tokens: self.num_prompt,
            total_tokens: self.num_prompt + num_generated,
            latency: ticket.age(),
            preprocess: Duration::ZERO,
            queue,
            compute,
            routed: Vec::new(),
        };
        ticket.end(&Outcome::Answered { report: &report, latency_budget: None });
        self.report = Some(report);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(mut ticket) = self.ticket.take() {
            ticket.end(&Outcome::Failed { code: ErrorCode::Cancelled });
        }
    }
}
