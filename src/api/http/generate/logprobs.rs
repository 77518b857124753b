//! Probabilities of tokens, as OpenAI's two APIs write them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{input::TextCoder, serve::Sampled};

/// Probabilities of a chat's tokens.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
}

/// Token of a chat, with its probability and the most likely ones.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatToken {
    #[serde(flatten)]
    token: TokenLogprob,
    top_logprobs: Vec<TokenLogprob>,
}

/// Token with the natural logarithm of its probability.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Probabilities of a completion's tokens.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

impl ChatLogprobs {
    /// Adds a token.
    pub(super) fn push(&mut self, coder: &TextCoder, sampled: &Sampled) {
        let entry = |token: u32, logprob: f32| TokenLogprob {
            token: text_of(coder, token),
            logprob,
            bytes: coder.bytes(token).to_vec(),
        };
        let top = sampled.top.iter().map(|top| entry(top.token, top.log_probability));
        self.content.push(ChatToken {
            token: entry(sampled.token, sampled.log_probability.unwrap_or_default()),
            top_logprobs: top.collect(),
        });
    }
}

impl TextLogprobs {
    /// Adds a token, whose text begins at the character `offset` of the answer.
    pub(super) fn push(&mut self, coder: &TextCoder, sampled: &Sampled, offset: usize) {
        self.tokens.push(text_of(coder, sampled.token));
        self.token_logprobs.push(sampled.log_probability.unwrap_or_default());
        let top = sampled.top.iter();
        let top = top.map(|top| (text_of(coder, top.token), top.log_probability));
        self.top_logprobs.push(top.collect());
        self.text_offset.push(offset);
    }
}

fn text_of(coder: &TextCoder, token: u32) -> String {
    String::from_utf8_lossy(coder.bytes(token)).into_owned()
}
