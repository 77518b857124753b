//! Integration tests: the real pool, the real runtime, the real server.

mod bad_input;
mod http;
mod reference;
mod support;
