//! `POST /v1/chat/completions`, `/v1/responses` and `/v1/completions`, `/tokenize` and
//! `/detokenize`, and `/v2/models/{model}/generate` and `/generate_stream`.
//!
//! The first three have the form that the `openai` clients know, with further parameters of
//! sampling under vLLM's names. Budgets are further keys of the body. The last two are Triton's.

mod answering;
pub(crate) mod chat;
pub(crate) mod completions;
pub(in crate::api) mod fields;
mod head;
pub(in crate::api) mod keys;
mod logprobs;
pub(in crate::api) mod messages;
mod prompt;
pub(crate) mod responses;
pub(in crate::api) mod start;
mod stream;
pub(in crate::api) mod texts;
pub(crate) mod tokens;
pub(crate) mod triton;
mod usage;
