//! The gRPC interface: the same service as over HTTP, in the Open Inference Protocol's messages.
//!
//! It decodes messages into the form that [`decode`](super::codec::decode) checks for every
//! protocol, and encodes answers. Start at [`service`], which lists the calls; [`serve_grpc`] runs
//! them on a socket.

mod codec;
mod describe;
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
mod stream;
mod wire;

pub use server::serve_grpc;
