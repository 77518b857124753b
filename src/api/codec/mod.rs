//! Decoding and encoding of requests and answers.

pub(super) mod body;
pub(super) mod bounded;
pub(super) mod bounds;
pub(super) mod decode;
pub(super) mod elements;
pub(super) mod encode;
pub(super) mod object;
pub(super) mod packed;
pub(super) mod parameters;
pub(super) mod raw;
pub(super) mod specs;
pub(super) mod tensors;
