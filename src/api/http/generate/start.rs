//! The start of a generation: the model, its language, and the place among its sequences.

use std::{sync::Arc, time::Instant};

use serde_json::{Map, Value};

use super::{
    answering::{Answering, Reading},
    fields::{Common, Form, refused, wrong},
    head::{Head, Names},
    tools::{ToolUse, grammar},
};
use crate::{
    api::{
        access::clients::Permit,
        codec::parameters::Parameters,
        error::ApiError,
        inference::{Model, accept},
    },
    input::{Language, PartsSpec},
    plan::Budget,
    serve::{GenerateRequest, Grammar, Ticket},
};

/// A request that was read, before its prompt is tokenized.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) common: Common,
    /// Most tokens to generate.
    pub(super) max_tokens: Option<usize>,
    /// Number of alternatives whose probabilities are told.
    pub(super) logprobs: Option<usize>,
    /// Number of answers of which the best ones are told; `None` for as many as are told.
    pub(super) best_of: Option<usize>,
    /// Grammar that each answer keeps, or `None`.
    pub(super) grammar: Option<Grammar>,
    /// Tools that may be called, or `None`.
    pub(super) tools: Option<ToolUse>,
    /// Budgets; any other key is refused by name.
    pub(super) parameters: Map<String, Value>,
    pub(super) arrival: Instant,
}

/// Prompt in tokens, and what the answer behind it is read for.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) tokens: Vec<u32>,
    pub(super) parts: PartsSpec,
}

/// A model that generates, with a request's place in the metrics.
pub(super) struct Door {
    ticket: Ticket,
    pub(super) model: Model,
    pub(super) language: Arc<Language>,
}

impl Door {
    /// Counts a request that arrived at `model`.
    ///
    /// # Errors
    ///
    /// Fails where the model does not generate text.
    pub(super) fn open(model: Model) -> Result<Self, ApiError> {
        let (ticket, language) = accept(model.service.arrive(), Self::language_of(&model))?;
        Ok(Self { ticket, model, language })
    }

    /// Returns the language of `model`.
    ///
    /// # Errors
    ///
    /// Fails where the model does not generate text.
    pub(super) fn language_of(model: &Model) -> Result<Arc<Language>, ApiError> {
        model.service.language().cloned().ok_or_else(|| ApiError::Parameter {
            name: "model".to_owned(),
            found: format!("`{}`, which does not generate text", model.service.name()),
            expected: "one whose task is text-generation",
        })
    }

    /// Begins the generation behind `prompt`.
    ///
    /// # Errors
    ///
    /// Fails on a parameter that is not valid, and where there is no room for the sequences.
    pub(super) fn begin(
        self,
        prompt: Result<Prompt, ApiError>,
        asked: Asked,
        permit: &Permit,
        names: Names,
    ) -> Result<Answering, ApiError> {
        let Self { ticket, model, language } = self;
        let model = model.service.name().to_owned();
        let client = permit.number();
        let read = || {
            let Asked { common, max_tokens, logprobs, best_of, grammar: own, tools, .. } = asked;
            let (mut budget, mut priority) = plan_parameters(Parameters::parse(asked.parameters)?)?;
            permit.cap(&mut budget, &mut priority);
            // Answers are compared by their probabilities.
            let told = logprobs.or(best_of.map(|_| 0));
            let sampling = common.sampling(told, language.coder.vocabulary_size())?;
            let ends = match common.ignores_ends() {
                true => Vec::new(),
                false => language.coder.ends().to_vec(),
            };
            let num_sequences = common.num_sequences(best_of)?;
            let (grammar_of, stops) = (common.grammar(own)?, common.stops()?);
            let form = common.form(logprobs)?;
            let Prompt { tokens, parts } = prompt?;
            let request = GenerateRequest {
                prompt: tokens,
                sampling,
                num_sequences,
                grammar: grammar(tools.as_ref(), grammar_of, parts.in_thought)?,
                max_tokens,
                ends,
                budget,
                priority,
                client,
                arrival: asked.arrival,
            };
            Ok((request, form, Reading { stops, parts }))
        };
        let (ticket, (request, form, reading)): (Ticket, (GenerateRequest, Form, Reading)) =
            accept(ticket, read())?;
        let head = Head::new(names, form.is_stream, model);
        let generation = ticket.generate(request)?;
        Ok(Answering::new(head, generation, language, &reading, form))
    }
}

/// Returns the budget and the priority. Parameters that generation does not honour are refused.
fn plan_parameters(parameters: Parameters) -> Result<(Budget, u32), ApiError> {
    let Parameters { budget, prompt_name, priority, explain, binary } = parameters;
    let set = [
        ("latency_budget_ms", budget.latency.is_some()),
        ("prompt_name", prompt_name.is_some()),
        ("explain", explain),
        ("binary_data_output", binary),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(wrong(name, "there", "absent where text is generated")),
        None => Ok((budget, priority)),
    }
}

/// Returns the error for a prompt that cannot be tokenized.
pub(super) fn not_tokenized(error: impl std::fmt::Display) -> ApiError {
    refused("prompt", error.to_string())
}
