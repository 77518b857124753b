//! Integration tests: the real pool, the real runtime, the real server.

mod reference;
mod support;
