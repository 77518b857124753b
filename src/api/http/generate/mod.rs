//! `POST /v1/chat/completions`, `POST /v1/completions`, `POST /tokenize` and `POST /detokenize`.
//!
//! The first two have the form that the `openai` clients know, with further parameters of sampling
//! under vLLM's names. Budgets are further keys of the body.

mod answering;
pub(crate) mod chat;
pub(crate) mod completions;
mod fields;
mod head;
mod logprobs;
mod start;
mod stream;
pub(crate) mod tokens;
mod usage;
