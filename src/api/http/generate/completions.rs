//! `POST /v1/completions`.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{Instrument, debug_span};

use super::{
    answering::{About, Answering},
    fields::{BudgetsSchema, Common, wrong},
    head::Names,
    keys::Keys,
    logprobs::TextLogprobs,
    start::{self, Asked, Door, TEXT_COMPLETION, USUAL_TOKENS, tokens_of},
    stream::{Events, stream},
    texts::Piece,
};
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, off_thread},
            object::{JsonObject, Untaken},
        },
        error::ApiError,
        inference::Model,
        layers::TimeLimit,
        state::Shared,
    },
    input::{Language, SpecialText},
};

const NAMES: Names = Names { id: "cmpl", whole: "text_completion", event: "text_completion" };

/// A request for the continuation of a text.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "CompletionRequest")]
pub(crate) struct CompletionQuestion {
    #[schemars(flatten)]
    own: CompletionFields,
    #[schemars(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[schemars(flatten, with = "BudgetsSchema")]
    untaken: Untaken,
}

/// Fields that only requests for the continuation of a text have.
#[derive(Debug, Deserialize, JsonSchema)]
struct CompletionFields {
    model: String,
    prompt: Prompt,
    max_tokens: Option<usize>,
    /// Number of alternatives whose probabilities are told.
    logprobs: Option<usize>,
    /// Number of answers of which the `n` most likely ones are told, by the mean of their tokens'
    /// logarithms of probabilities.
    best_of: Option<usize>,
    /// Whether the text begins with the prompt.
    echo: Option<bool>,
}

/// A text, or its tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionPrompt")]
#[serde(untagged, expecting = "must be a string, an array of one string, or an array of token ids")]
enum Prompt {
    Text(String),
    Texts([String; 1]),
    Tokens(Vec<u32>),
}

/// The continuation of a text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CompletionResponse")]
pub(crate) struct CompletionAnswer {
    #[serde(flatten)]
    about: About,
    choices: Vec<TextChoice>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Answers a request for the continuation of a text.
pub(crate) async fn completions(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    Extension(limit): Extension<TimeLimit>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let question: CompletionQuestion =
        off_thread(body.len(), move || CompletionQuestion::parse(&body))
            .instrument(debug_span!("decode"))
            .await?;
    let model = Model::find(shared.api.repository.registry(), &question.own.model, None)?;
    let door = Door::open(model, limit)?;
    let (language, context) = (door.language.clone(), door.model.service.context());
    let CompletionQuestion { own, common, untaken } = question;
    let echo = own.echoed(&language);
    let CompletionFields { prompt, max_tokens, logprobs, best_of, .. } = own;
    let read = move || {
        let tokens = prompt.into_tokens(&language, context)?;
        Ok(start::Prompt::plain(tokens))
    };
    let prompt = off_thread(usize::MAX, read).instrument(debug_span!("preprocess")).await;
    let (prompt, echo) = match echo {
        Ok(echo) => (prompt, echo),
        Err(error) => (Err(error), None),
    };
    let max_tokens = Some(max_tokens.unwrap_or(USUAL_TOKENS));
    let (operation, grammar, tools) = (TEXT_COMPLETION, None, None);
    let asked = Asked {
        operation,
        keys: Keys::OF_TEXT,
        common,
        max_tokens,
        logprobs,
        best_of,
        grammar,
        tools,
        untaken,
        arrival,
    };
    let answering = door.begin(prompt, asked, &permit, NAMES).await?;
    match answering.form.is_stream {
        true => {
            let offsets = vec![0; answering.num_choices()];
            Ok(stream(answering, TextEvents { offsets, echo }))
        }
        false => whole(answering, &echo.unwrap_or_default()).await,
    }
}

impl CompletionQuestion {
    /// Parses the body of a request.
    ///
    /// # Errors
    ///
    /// Fails on a body that is not a JSON object, and on fields of wrong types.
    pub(in crate::api) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut object = JsonObject::parse(body)?;
        let (own, common) = (object.take()?, object.take()?);
        Ok(Self { own, common, untaken: object.rest() })
    }
}

impl CompletionFields {
    /// Returns the text of the prompt, if the answer begins with it.
    fn echoed(&self, language: &Language) -> Result<Option<String>, ApiError> {
        match (self.echo, self.logprobs) {
            (None | Some(false), _) => Ok(None),
            (Some(true), Some(_)) => {
                // Those of the prompt would be expected too.
                Err(wrong("echo", "true", "false or absent beside `logprobs`"))
            }
            (Some(true), None) => Ok(Some(match &self.prompt {
                Prompt::Text(text) | Prompt::Texts([text]) => text.clone(),
                Prompt::Tokens(tokens) => language.coder.decode(tokens, SpecialText::Text),
            })),
        }
    }
}

impl Prompt {
    /// Returns the tokens. A text that must have more than the context holds is not tokenized.
    fn into_tokens(self, language: &Language, context: usize) -> Result<Vec<u32>, ApiError> {
        match self {
            Self::Text(text) | Self::Texts([text]) => tokens_of(&text, language, context),
            Self::Tokens(tokens) => Ok(tokens),
        }
    }
}

/// A choice with the logarithms of its tokens' probabilities.
struct Ranked {
    choice: TextChoice,
    sum: f64,
    num_tokens: u32,
}

impl Ranked {
    /// Returns the mean of the logarithms.
    fn mean(&self) -> f64 {
        self.sum / f64::from(self.num_tokens.max(1))
    }
}

async fn whole(mut answering: Answering, echo: &str) -> Result<Response, ApiError> {
    let choice = |index| Ranked {
        choice: TextChoice {
            index,
            text: echo.to_owned(),
            logprobs: answering.form.logprobs.map(|_| TextLogprobs::default()),
            finish_reason: None,
        },
        sum: 0.0,
        num_tokens: 0,
    };
    let mut ranked: Vec<Ranked> = (0..answering.num_choices()).map(choice).collect();
    while let Some(piece) = answering.next().await? {
        let Ranked { choice, sum, num_tokens } = &mut ranked[piece.index];
        if let Some(token) = &piece.token {
            *sum += f64::from(token.log_probability.unwrap_or_default());
            *num_tokens += 1;
            if let Some(logprobs) = &mut choice.logprobs {
                logprobs.push(&answering.language().coder, token, choice.text.chars().count());
            }
        }
        choice.text.push_str(&piece.text());
        choice.finish_reason = piece.reason().or(choice.finish_reason);
    }
    if answering.form.num_told < ranked.len() {
        ranked.sort_by(|one, other| other.mean().total_cmp(&one.mean()));
        ranked.truncate(answering.form.num_told);
    }
    let choices = ranked.into_iter().enumerate();
    let choices = choices.map(|(index, own)| TextChoice { index, ..own.choice }).collect();
    Ok(Json(CompletionAnswer { about: answering.about(), choices }).into_response())
}

/// Choices of a completion's events.
struct TextEvents {
    /// Number of characters of each choice.
    offsets: Vec<usize>,
    /// Text of the prompt, if the answer begins with it.
    echo: Option<String>,
}

impl Events for TextEvents {
    fn first(&self, index: usize) -> Option<Value> {
        let text = self.echo.as_ref()?;
        Some(json!({"index": index, "text": text, "logprobs": null, "finish_reason": null}))
    }

    fn choice(&mut self, answering: &Answering, piece: &Piece) -> Option<Value> {
        let mut logprobs = answering.form.logprobs.map(|_| TextLogprobs::default());
        if let (Some(logprobs), Some(token)) = (&mut logprobs, &piece.token) {
            logprobs.push(&answering.language().coder, token, self.offsets[piece.index]);
        }
        let text = piece.text();
        self.offsets[piece.index] += text.chars().count();
        if text.is_empty() && piece.finish.is_none() && logprobs.is_none() {
            return None;
        }
        Some(json!({"index": piece.index, "text": text, "logprobs": logprobs,
                    "finish_reason": piece.reason()}))
    }
}
