//! `POST /v1/completions`.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{Instrument, debug_span};

use super::{
    answering::{About, Answering},
    fields::Common,
    head::Names,
    logprobs::TextLogprobs,
    start::{Asked, Door, TEXT_COMPLETION, USUAL_TOKENS, tokens_of},
    stream::{Events, stream},
    texts::Piece,
};
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, off_thread, parse_json},
            bounds::Bounds,
            parameters::ParametersSchema,
        },
        error::ApiError,
        inference::Model,
        state::Shared,
    },
    input::Language,
};

const NAMES: Names = Names { id: "cmpl", whole: "text_completion", event: "text_completion" };

/// A request for the continuation of a text.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionRequest")]
#[serde(expecting = "a JSON object with `model` and `prompt`")]
pub(crate) struct CompletionQuestion {
    model: String,
    prompt: Prompt,
    max_tokens: Option<usize>,
    /// Number of alternatives whose probabilities are told.
    logprobs: Option<usize>,
    #[serde(flatten)]
    common: Common,
    /// Budgets; any other key is refused by name.
    #[serde(flatten)]
    #[schemars(with = "ParametersSchema")]
    parameters: Map<String, Value>,
}

/// A text, or its tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "CompletionPrompt")]
#[serde(untagged, expecting = "a string, an array of one string, or an array of token ids")]
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
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let question: CompletionQuestion =
        off_thread(body.len(), move || parse_json(&body, &Bounds::NO_TENSORS))
            .instrument(debug_span!("decode"))
            .await?;
    let model = Model::find(shared.api.repository.registry(), &question.model, None)?;
    let door = Door::open(model)?;
    let CompletionQuestion { prompt, max_tokens, logprobs, common, parameters, .. } = question;
    let (language, context) = (door.language.clone(), door.model.service.context());
    let read = move || prompt.into_tokens(&language, context);
    let prompt = off_thread(usize::MAX, read).instrument(debug_span!("preprocess")).await;
    let max_tokens = Some(max_tokens.unwrap_or(USUAL_TOKENS));
    let asked = Asked {
        operation: TEXT_COMPLETION,
        common,
        max_tokens,
        logprobs,
        grammar: None,
        parameters,
        arrival,
    };
    let answering = door.begin(prompt, asked, &permit, NAMES).await?;
    match answering.form.is_stream {
        true => {
            let offsets = vec![0; answering.num_choices()];
            Ok(stream(answering, TextEvents { offsets }))
        }
        false => whole(answering).await,
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

async fn whole(mut answering: Answering) -> Result<Response, ApiError> {
    let choice = |index| TextChoice {
        index,
        text: String::new(),
        logprobs: answering.form.logprobs.map(|_| TextLogprobs::default()),
        finish_reason: None,
    };
    let mut choices: Vec<TextChoice> = (0..answering.num_choices()).map(choice).collect();
    while let Some(piece) = answering.next().await? {
        let choice = &mut choices[piece.index];
        if let (Some(logprobs), Some(token)) = (&mut choice.logprobs, &piece.token) {
            logprobs.push(&answering.language().coder, token, choice.text.chars().count());
        }
        choice.text.push_str(&piece.text);
        choice.finish_reason = piece.reason().or(choice.finish_reason);
    }
    Ok(Json(CompletionAnswer { about: answering.about(), choices }).into_response())
}

/// Choices of a completion's events.
struct TextEvents {
    /// Number of characters of each choice.
    offsets: Vec<usize>,
}

impl Events for TextEvents {
    fn first(&self, _: usize) -> Option<Value> {
        None
    }

    fn choice(&mut self, answering: &Answering, piece: &Piece) -> Option<Value> {
        let mut logprobs = answering.form.logprobs.map(|_| TextLogprobs::default());
        if let (Some(logprobs), Some(token)) = (&mut logprobs, &piece.token) {
            logprobs.push(&answering.language().coder, token, self.offsets[piece.index]);
        }
        self.offsets[piece.index] += piece.text.chars().count();
        if piece.text.is_empty() && piece.finish.is_none() && logprobs.is_none() {
            return None;
        }
        Some(json!({"index": piece.index, "text": piece.text, "logprobs": logprobs,
                    "finish_reason": piece.reason()}))
    }
}
