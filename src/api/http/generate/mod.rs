//! `POST /v1/chat/completions`, `POST /v1/completions`, `POST /tokenize`, `POST /detokenize`, and
//! `POST /v2/models/{model}/generate` and `/generate_stream`.
//!
//! The first two have the form that the `openai` clients know, with further parameters of sampling
//! under vLLM's names. Budgets are further keys of the body. The last two are Triton's.

mod answering;
pub(crate) mod chat;
pub(crate) mod completions;
pub(in crate::api) mod fields;
mod head;
mod logprobs;
pub(in crate::api) mod start;
mod stream;
pub(in crate::api) mod texts;
pub(crate) mod tokens;
pub(crate) mod triton;
mod usage;
