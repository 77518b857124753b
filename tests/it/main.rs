//! Integration tests: the real pool, the real runtime, the real server.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::needless_pass_by_value,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests compare floats, print what they find, and panic where it is wrong"
)]

mod app;
mod bad_input;
mod bad_pool;
mod chats;
mod checkpoints;
mod completions;
mod experts;
mod gemma;
mod generation;
mod gguf;
mod gguf_experts;
mod http;
mod images;
mod import;
mod int8_caches;
mod large_files;
mod limits;
mod load;
mod long_texts;
mod measuring;
mod mixing;
mod moe;
mod moe_served;
mod narrow;
mod not_finite;
mod panics;
mod pool;
mod preemption;
mod promises;
mod prompts;
mod reference;
mod repository;
mod responses;
mod rows;
mod sequences;
mod support;
mod tidy;
mod tidy_circles;
mod tidy_language;
mod tools;
mod triton_text;
mod vision;
mod writers;
