//! The messages of `proto/inference.proto`, as generated.
//!
//! gRPC sends them; HTTP writes some of them as JSON.

#![expect(
    unreachable_pub,
    clippy::enum_variant_names,
    reason = "generated code; what it means stands in the .proto"
)]

include!(concat!(env!("OUT_DIR"), "/inference.rs"));

/// The description of the protocol that server reflection gives.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
