//! The start of a generation: the model, its language, and the place among its sequences.

use std::{sync::Arc, time::Instant};

use tracing::Span;

use super::{
    answering::Answering,
    fields::{BUDGETS, Common, Form, refused, wrong},
    head::{Head, Names},
    keys::Keys,
    messages::tools::{ToolUse, grammar},
    texts::{Reading, Texts},
};
use crate::{
    api::{
        access::clients::Permit,
        codec::{bounds::check, object::Untaken, parameters::Parameters},
        error::ApiError,
        inference::{Model, accept},
        layers::TimeLimit,
    },
    input::{Language, PartsSpec},
    plan::Budget,
    serve::{GenerateRequest, Grammar, Ticket},
    telemetry::GenerationAttributes,
};

/// Operation of a request for the continuation of a text.
pub(in crate::api) const TEXT_COMPLETION: &str = "text_completion";

/// Parameter of a time budget in Triton's protocol.
const TIMEOUT: &str = "timeout";

/// Most tokens that are generated behind a text if the request does not say.
pub(in crate::api) const USUAL_TOKENS: usize = 16;

/// A request that was read, before its prompt is tokenized.
#[derive(Debug)]
pub(in crate::api) struct Asked {
    /// Name of the operation in traces.
    pub(in crate::api) operation: &'static str,
    /// Names of its keys.
    pub(in crate::api) keys: Keys,
    pub(in crate::api) common: Common,
    /// Most tokens to generate.
    pub(in crate::api) max_tokens: Option<usize>,
    /// Number of alternatives whose probabilities are told.
    pub(in crate::api) logprobs: Option<usize>,
    /// Number of answers of which the best ones are told; `None` for as many as are told.
    pub(in crate::api) best_of: Option<usize>,
    /// Grammar that each answer keeps, or `None`.
    pub(in crate::api) grammar: Option<Grammar>,
    /// Tools that may be called, or `None`.
    pub(in crate::api) tools: Option<ToolUse>,
    /// Budgets; any other key is refused by name.
    pub(in crate::api) untaken: Untaken,
    pub(in crate::api) arrival: Instant,
}

/// Prompt in tokens, and what the answer behind it is read for.
#[derive(Debug)]
pub(in crate::api) struct Prompt {
    pub(super) tokens: Vec<u32>,
    pub(super) parts: PartsSpec,
}

impl Prompt {
    /// Returns a prompt whose answer is text.
    pub(in crate::api) fn plain(tokens: Vec<u32>) -> Self {
        Self { tokens, parts: PartsSpec::default() }
    }
}

/// A model that generates, with a request's place in the metrics.
pub(in crate::api) struct Door {
    ticket: Ticket,
    pub(in crate::api) model: Model,
    pub(in crate::api) language: Arc<Language>,
    limit: TimeLimit,
}

impl Door {
    /// Counts a request that arrived at `model`, whose `limit` is lifted at the first token.
    ///
    /// # Errors
    ///
    /// Fails where the model does not generate text.
    pub(in crate::api) fn open(model: Model, limit: TimeLimit) -> Result<Self, ApiError> {
        let ticket = model.service.arrive();
        Ok(Self { limit, ..Self::open_with(ticket, model)? })
    }

    /// Goes on with a request at `model` that was counted before.
    ///
    /// # Errors
    ///
    /// Fails where the model does not generate text.
    pub(in crate::api) fn open_with(ticket: Ticket, model: Model) -> Result<Self, ApiError> {
        let (ticket, language) = accept(ticket, Self::language_of(&model))?;
        Ok(Self { ticket, model, language, limit: TimeLimit::default() })
    }

    /// Returns the door with what was read. A request that is refused ends in the metrics.
    ///
    /// # Errors
    ///
    /// Fails with the error of `read`.
    pub(super) fn accept<T>(self, read: Result<T, ApiError>) -> Result<(Self, T), ApiError> {
        let Self { ticket, model, language, limit } = self;
        let (ticket, read) = accept(ticket, read)?;
        Ok((Self { ticket, model, language, limit }, read))
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

    /// Begins the answer behind `prompt`, in the form that `names` tell.
    ///
    /// # Errors
    ///
    /// Fails like [`admit`](Self::admit).
    pub(super) async fn begin(
        self,
        prompt: Result<Prompt, ApiError>,
        asked: Asked,
        permit: &Permit,
        names: Names,
    ) -> Result<Answering, ApiError> {
        let model = self.model.service.name().to_owned();
        let (texts, form) = self.admit(prompt, asked, permit).await?;
        let head = Head::new(names, form.is_stream, model);
        Ok(Answering::new(head, texts, form))
    }

    /// Begins the generation behind `prompt`.
    ///
    /// # Errors
    ///
    /// Fails on a parameter that is not valid, and where there is no room for the sequences.
    pub(in crate::api) async fn admit(
        self,
        prompt: Result<Prompt, ApiError>,
        asked: Asked,
        permit: &Permit,
    ) -> Result<(Texts, Form), ApiError> {
        let Self { ticket, language, model, limit } = self;
        let attributes = GenerationAttributes {
            operation: asked.operation,
            max_tokens: asked.max_tokens,
            ..asked.common.attributes(model.service.name())
        };
        attributes.set(&Span::current());
        let client = permit.number();
        let form = asked.common.guided().unwrap_or(asked.keys.form);
        let keys = Keys { form, ..asked.keys };
        let read = || {
            let Asked { common, max_tokens, logprobs, best_of, grammar: own, tools, .. } = asked;
            let (mut budget, mut priority) = plan_parameters(asked.untaken)?;
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
            Ok((request, form, Reading { stops, parts, keys }))
        };
        let (ticket, (request, form, reading)): (Ticket, (GenerateRequest, Form, Reading)) =
            accept(ticket, read().map_err(|error| keys.renamed_refusal(error)))?;
        let generation = ticket.generate(request).await;
        let generation = generation.map_err(|error| keys.renamed(error))?;
        Ok((Texts::new(generation, language, &reading, limit), form))
    }
}

/// Returns the budget and the priority. Parameters that generation does not honour are refused.
fn plan_parameters(untaken: Untaken) -> Result<(Budget, u32), ApiError> {
    let Untaken { fields, mut known } = untaken;
    let time = match fields.contains_key(TIMEOUT) {
        true => TIMEOUT,
        false => "latency_budget_ms",
    };
    let parsed = Parameters::parse(fields).map_err(|error| match error {
        ApiError::UnknownParameter { name, .. } => {
            known.extend(BUDGETS);
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            ApiError::UnknownParameter { name, known: known.into() }
        }
        error => error,
    })?;
    let Parameters { budget, prompt_name, priority, explain, binary } = parsed;
    let set = [
        (time, budget.latency.is_some()),
        ("prompt_name", prompt_name.is_some()),
        ("explain", explain),
        ("binary_data_output", binary),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(wrong(name, "there", "absent where text is generated")),
        None => Ok((budget, priority)),
    }
}

/// Returns the tokens of a text whose continuation is wanted. A text that must have more than the
/// context holds is not tokenized.
///
/// # Errors
///
/// Fails on a text that is too long, or that has no tokens.
pub(in crate::api) fn tokens_of(
    text: &str,
    language: &Language,
    context: usize,
) -> Result<Vec<u32>, ApiError> {
    check("the number of bytes", text.len(), language.coder.max_bytes(context))?;
    language.coder.encode_prompt(text).map_err(not_tokenized)
}

/// Returns the error for a prompt that cannot be tokenized.
pub(super) fn not_tokenized(error: impl std::fmt::Display) -> ApiError {
    refused("prompt", error.to_string())
}
