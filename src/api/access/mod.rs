//! Clients: tokens, rates and caps.

pub(super) mod clients;

pub use clients::{Clients, ClientsError, Gate};
