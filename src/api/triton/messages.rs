//! Messages generated from `proto/inference.proto`.
//!
//! gRPC sends them; HTTP writes some of them as JSON.

#![expect(
    unreachable_pub,
    clippy::enum_variant_names,
    reason = "generated code; what it means stands in the .proto"
)]

include!(concat!(env!("OUT_DIR"), "/inference.rs"));

/// Description of the protocol for server reflection.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
