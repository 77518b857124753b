//! The gRPC edge: the same service as over HTTP, by the Open Inference Protocol's messages.
//!
//! It decodes messages into what [`decode`](super::decode) checks for every protocol, and writes
//! answers back. Start at [`service`], which lists the calls; [`server()`] runs them on a socket.

mod codec;
mod describe;
mod encoded;
#[cfg(test)]
mod fuzz_tests;
mod generated;
mod health;
mod idle;
mod infer;
mod layers;
mod repository;
mod server;
mod service;
mod status;
mod unpacked;
mod wire;

pub use server::serve_grpc;
