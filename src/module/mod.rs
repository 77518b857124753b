//! Modules as the runtime sees them: a network, or experts among which tokens are routed.
//!
//! Knows no architecture and runs nothing. Start at [`Network`] and [`Routed`].

mod cache;
mod chain;
mod compute;
mod error;
mod network;
mod port;
mod routed;

pub use cache::{
    COSINES, CacheSpec, Cached, KEY_SCALES, LENGTHS, PAST_KEYS, PAST_VALUES, PLACES, POSITIONS,
    PRESENT_KEYS, PRESENT_VALUES, Pairs, QUERY_LENGTHS, ROWS, SINES, TOTAL_LENGTH, VALUE_SCALES,
};
pub use compute::Compute;
pub use error::ModuleError;
pub use network::{
    ATTENTION_MASK, Batching, INPUT_IDS, Network, PIXEL_VALUES, Precision, TOKEN_SIZES,
};
pub use port::Port;
pub(crate) use routed::Body;
pub use routed::{
    KEYS, Order, QUERIES, REST, Routed, Router, SCORES, SUM, TOKENS, VALUES, Ways, Weighting,
};
