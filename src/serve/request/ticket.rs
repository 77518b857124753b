//! Tickets of requests, and answers as streams of events.

use std::{
    collections::VecDeque,
    sync::Arc,
    thread::panicking,
    time::{Duration, Instant},
};

use super::{
    InferRequest, InferResponse, PlanSummary, Report, admit::Queued, service::FamilyService,
};
use crate::{
    serve::{
        admission::job::Done,
        error::{ErrorCode, ServeError},
        observe::Outcome,
    },
    tensor::Tensor,
};

/// Guard of a request that has arrived at a family. The request ends once in the metrics: with the
/// outcome that it is given, or when the guard is dropped, as cancelled or as failed by a panic.
#[derive(Debug)]
pub struct Ticket {
    service: Arc<FamilyService>,
    arrival: Instant,
    is_ended: bool,
}

/// Answer to an admitted request: a stream of events that ends with [`Event::Ended`].
#[derive(Debug)]
pub struct Answer {
    ticket: Ticket,
    latency_budget: Option<Duration>,
    queued: Queued,
    /// Events that have happened; empty before the first.
    events: VecDeque<Event>,
    is_done: bool,
}

/// Event of an answer, independent of any protocol.
#[derive(Debug)]
pub enum Event {
    /// The request runs on this plan.
    Started(PlanSummary),
    /// Outputs by name, the family's own first.
    Output(Vec<(String, Tensor)>),
    /// The request is answered.
    Ended(Box<Report>),
}

impl FamilyService {
    /// Counts a request that has arrived, before it is understood.
    pub fn arrive(self: &Arc<Self>) -> Ticket {
        Ticket::new(self.clone())
    }

    /// Answers a request.
    ///
    /// # Errors
    ///
    /// Fails on inputs that are not the family's, budgets that no plan meets and a full queue.
    /// Fails on a request that waited too long, and on modules that fail.
    ///
    /// # Cancel safety
    ///
    /// A request whose future is dropped while it waits costs no compute.
    pub async fn infer(
        self: &Arc<Self>,
        request: InferRequest,
    ) -> Result<InferResponse, ServeError> {
        self.arrive().submit(request).await?.whole().await
    }
}

impl Ticket {
    /// Creates the ticket of a request that arrives now at `service`.
    pub(super) fn new(service: Arc<FamilyService>) -> Self {
        service.observer().accepted(service.name());
        Self { service, arrival: Instant::now(), is_ended: false }
    }

    /// Ends a request that is refused before its family reads it.
    pub fn refuse(mut self, code: ErrorCode) {
        self.is_ended = true;
        let outcome = Outcome::Failed { code };
        self.service.observer().finished(self.service.name(), &outcome);
    }

    /// Admits the request, prepares its inputs and queues it.
    ///
    /// # Errors
    ///
    /// Fails on inputs that are not the family's, budgets that no plan meets and a full queue.
    ///
    /// # Cancel safety
    ///
    /// A request whose future is dropped gives its place up.
    pub async fn submit(mut self, request: InferRequest) -> Result<Answer, ServeError> {
        self.arrival = request.arrival;
        let latency_budget = request.budget.latency;
        match self.service.enqueue(request).await {
            Ok(queued) => {
                let events = VecDeque::new();
                Ok(Answer { ticket: self, latency_budget, queued, events, is_done: false })
            }
            Err(error) => {
                self.end(&Outcome::Failed { code: error.code() });
                Err(error)
            }
        }
    }

    /// Returns the family's service.
    pub(super) fn service(&self) -> &Arc<FamilyService> {
        &self.service
    }

    /// Returns the time since the arrival.
    pub(super) fn age(&self) -> Duration {
        self.arrival.elapsed()
    }

    pub(super) fn end(&mut self, outcome: &Outcome<'_>) {
        self.is_ended = true;
        let service = &self.service;
        match outcome {
            Outcome::Answered { report, .. } => service.counter().answered(report),
            Outcome::Failed { .. } => service.counter().failed(self.arrival.elapsed()),
        }
        service.observer().finished(service.name(), outcome);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_ended {
            let code = if panicking() { ErrorCode::Internal } else { ErrorCode::Cancelled };
            self.end(&Outcome::Failed { code });
        }
    }
}

impl Answer {
    /// Returns the next event, or `None` after the last one.
    ///
    /// # Errors
    ///
    /// Fails on a request that waited too long, and on modules that fail.
    ///
    /// # Cancel safety
    ///
    /// No event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Event>, ServeError> {
        if !self.is_done {
            let reply = (&mut self.queued.reply).await;
            self.is_done = true;
            match reply.unwrap_or(Err(ServeError::WorkerGone)) {
                Ok(done) => self.finish(done),
                Err(error) => {
                    self.ticket.end(&Outcome::Failed { code: error.code() });
                    return Err(error);
                }
            }
        }
        Ok(self.events.pop_front())
    }

    /// Returns the whole answer.
    ///
    /// # Errors
    ///
    /// Fails like [`next`](Self::next).
    ///
    /// # Cancel safety
    ///
    /// A request whose future is dropped while it waits costs no compute.
    pub async fn whole(mut self) -> Result<InferResponse, ServeError> {
        let mut outputs = Vec::new();
        loop {
            match self.next().await? {
                Some(Event::Output(found)) => outputs.extend(found),
                Some(Event::Ended(report)) => {
                    return Ok(InferResponse { outputs, report: *report });
                }
                Some(Event::Started(_)) => {}
                None => return Err(ServeError::Broken { what: "an answer has no end" }),
            }
        }
    }

    /// Ends the request in the metrics, and makes its events.
    fn finish(&mut self, done: Done) {
        let Done { outputs, routed, before, queue, compute, chosen } = done;
        let service = &self.ticket.service;
        let latency = self.ticket.arrival.elapsed();
        service.learn_answering(latency.saturating_sub(before + queue + compute));
        let Queued { shape, total_tokens, preprocess, .. } = self.queued;
        let names = service.output_specs().into_iter().map(|spec| spec.name);
        let outputs = names.zip(outputs).collect();
        let report = Report {
            plan: chosen.summary.clone(),
            batch: shape.batch,
            tokens: shape.tokens,
            total_tokens,
            latency,
            preprocess,
            queue,
            compute,
            routed,
        };
        let latency_budget = self.latency_budget;
        self.ticket.end(&Outcome::Answered { report: &report, latency_budget });
        let ended = Event::Ended(Box::new(report));
        self.events.extend([Event::Started(chosen.summary), Event::Output(outputs), ended]);
    }
}

#[cfg(test)]
#[path = "ticket_tests.rs"]
mod tests;
