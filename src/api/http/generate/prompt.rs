//! Chats as prompts in tokens, and the start of their answers.

use tracing::{Instrument, debug_span};

use super::{
    answering::Answering,
    fields::refused,
    head::Names,
    messages::tools::{ReadCalls, ToolUse},
    start::{Asked, Door, Prompt, not_tokenized},
};
use crate::{
    api::{access::clients::Permit, codec::body::off_thread, error::ApiError},
    input::{Chat, Language, PartsSpec},
};

/// Largest prompt in bytes before it is tokenized, per token of the context.
const BYTES_PER_TOKEN: usize = 64;

/// Text at the end of a prompt whose answer begins in a thought.
const OPENED: &str = "<think>";

/// Begins the answer to `chat`.
///
/// # Errors
///
/// Fails on a chat that the template refuses, and like the generation.
pub(super) async fn begin(
    door: Door,
    chat: Result<Chat, ApiError>,
    asked: Asked,
    permit: Permit,
    names: Names,
) -> Result<Answering, ApiError> {
    let (language, context) = (door.language.clone(), door.model.service.context());
    let calls = asked.tools.as_ref().map(ToolUse::reads);
    let write = move || prompt_of(&language, &chat?, calls, context);
    let prompt = off_thread(usize::MAX, write).instrument(debug_span!("preprocess")).await;
    door.begin(prompt, asked, &permit, names).await
}

/// Returns the prompt of `chat` for a model whose sequences hold `context` tokens, and whose answer
/// is read for `calls`.
///
/// # Errors
///
/// Fails when the model has no template, or its template refuses the chat.
fn prompt_of(
    language: &Language,
    chat: &Chat,
    calls: Option<ReadCalls>,
    context: usize,
) -> Result<Prompt, ApiError> {
    let template = language.template.as_ref().ok_or_else(|| {
        refused("messages", "the model has no chat template; use /v1/completions".to_owned())
    })?;
    let most = context.saturating_mul(BYTES_PER_TOKEN);
    let prompt = template
        .render(chat, language.coder.special_texts(), most)
        .map_err(|error| refused("messages", error.to_string()))?;
    let thinks = template.thinks();
    let mut parts = PartsSpec {
        thinks,
        in_thought: thinks && prompt.text.trim_end().ends_with(OPENED),
        ..PartsSpec::default()
    };
    if let Some(ReadCalls { format, functions }) = calls {
        (parts.calls, parts.functions) = (Some(format), functions);
    }
    let tokens = language.coder.encode_chat(&prompt.text, &prompt.guards).map_err(not_tokenized)?;
    Ok(Prompt { tokens, parts })
}
