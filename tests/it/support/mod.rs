//! Parts that the tests share.

pub(crate) mod decoder;
pub(crate) mod experts;
mod families;
mod folder;
pub(crate) mod gguf;
pub(crate) mod http;
pub(crate) mod idle;
pub(crate) mod language;
mod profiles;
mod program;
mod reference;
mod runtime;
pub(crate) mod server;
mod serving;
pub(crate) mod synthetic;
pub(crate) mod watching;
pub(crate) mod ways;
pub(crate) mod ways_apart;

pub(crate) use families::{fashion_family, text_executor, text_family};
pub(crate) use folder::{Folder, names_in};
pub(crate) use profiles::{computed, computed_cache, machine_key};
pub(crate) use program::Program;
pub(crate) use reference::{Reference, assert_close};
pub(crate) use runtime::{root, runtime};
pub(crate) use serving::{CONFIG, Families, PATIENCE, Served, api_config};
