//! Network interfaces: the Open Inference Protocol v2 over HTTP and gRPC, with budgets and plans.
//!
//! Only this module names axum and tonic. It decodes and encodes; [`serve`](crate::serve) decides
//! the meaning of a request. Below [`serve`](crate::serve), only plain data types are used. Start
//! at [`router`], which lists the routes. [`serve_http`] and [`serve_grpc`] run them on sockets
//! until they are told to stop.

mod access;
mod answers;
mod codec;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod grpc;
mod http;
mod inference;
mod json_error;
mod layers;
mod openapi;
mod path;
mod route;
mod routes;
mod serve_http;
mod state;
mod transport;
mod triton;

pub use access::{Clients, ClientsError, Gate};
pub use grpc::serve_grpc;
pub use routes::router;
pub use serve_http::serve_http;
pub use state::{ApiConfig, ApiState, ContinueTrace};
pub use transport::{Limits, Tls, TlsError, TlsFiles, Transport};
