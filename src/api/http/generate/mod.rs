//! `POST /v1/chat/completions`, `/v1/responses` and `/v1/completions`, `/tokenize` and
//! `/detokenize`.
//!
//! The first three have the form that the `openai` clients know, with further parameters of
//! sampling under vLLM's names. Budgets are further keys of the body.

mod answering;
pub(crate) mod chat;
pub(crate) mod completions;
mod fields;
mod head;
mod logprobs;
mod message;
mod messages;
mod prompt;
pub(crate) mod responses;
mod start;
mod stream;
pub(crate) mod tokens;
mod tools;
mod usage;
