//! Text generation in the terms of Triton's vLLM backend: its inputs, parameters and outputs.
//!
//! Keys of JSON and tensors become a [`question`], whose [`answer`] has tensors again.

pub(crate) mod answer;
#[cfg(test)]
mod fuzz_tests;
mod keys;
pub(crate) mod question;
pub(crate) mod tensors;
