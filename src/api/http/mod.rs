//! Handlers of the HTTP routes.

pub(super) mod generate;
pub(super) mod health;
pub(super) mod infer;
pub(super) mod models;
pub(super) mod openai;
pub(super) mod plans;
pub(super) mod repository;
