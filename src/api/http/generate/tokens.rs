//! `POST /tokenize` and `POST /detokenize`, in vLLM's form.

use std::sync::Arc;

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    fields::refused,
    start::{Door, not_tokenized},
};
use crate::{
    api::{
        codec::{
            body::{Body, off_thread, parse_json},
            bounds::Bounds,
        },
        error::ApiError,
        inference::Model,
        state::Shared,
    },
    input::SpecialText,
};

/// A text to tokenize.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TokenizeRequest")]
#[serde(deny_unknown_fields, expecting = "a JSON object with `model` and `prompt`")]
pub(crate) struct TokenizeQuestion {
    model: String,
    prompt: String,
    /// Whether the tokens begin with those that begin each prompt.
    add_special_tokens: Option<bool>,
}

/// Tokens of a text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenizeResponse")]
pub(crate) struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
}

/// Tokens whose text is wanted.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "DetokenizeRequest")]
#[serde(deny_unknown_fields, expecting = "a JSON object with `model` and `tokens`")]
pub(crate) struct DetokenizeQuestion {
    model: String,
    tokens: Vec<u32>,
}

/// Text of tokens.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DetokenizeResponse")]
pub(crate) struct Text {
    prompt: String,
}

/// Tokenizes a text.
pub(crate) async fn tokenize(
    State(shared): State<Arc<Shared>>,
    Body(body): Body,
) -> Result<Json<Tokens>, ApiError> {
    let question: TokenizeQuestion =
        off_thread(body.len(), move || parse_json(&body, &Bounds::NO_TENSORS)).await?;
    let model = Model::find(shared.api.repository.registry(), &question.model, None)?;
    let max_model_len = model.service.context();
    let language = Door::language_of(&model)?;
    let encode = move || match question.add_special_tokens.unwrap_or(true) {
        true => language.coder.encode_prompt(&question.prompt),
        false => language.coder.encode(&question.prompt, SpecialText::Tokens),
    };
    let tokens = off_thread(usize::MAX, move || encode().map_err(not_tokenized)).await?;
    Ok(Json(Tokens { count: tokens.len(), max_model_len, tokens }))
}

/// Returns the text of tokens.
pub(crate) async fn detokenize(
    State(shared): State<Arc<Shared>>,
    Body(body): Body,
) -> Result<Json<Text>, ApiError> {
    let question: DetokenizeQuestion =
        off_thread(body.len(), move || parse_json(&body, &Bounds::NO_TENSORS)).await?;
    let model = Model::find(shared.api.repository.registry(), &question.model, None)?;
    let language = Door::language_of(&model)?;
    let size = language.coder.vocabulary_size();
    if let Some(id) = question.tokens.iter().find(|id| **id as usize >= size) {
        return Err(refused("tokens", format!("{id} is no token; there are {size}")));
    }
    Ok(Json(Text { prompt: language.coder.decode(&question.tokens, SpecialText::Tokens) }))
}
