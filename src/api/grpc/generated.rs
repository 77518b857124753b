//! Service generated from `proto/inference.proto`; its messages are in
//! [`messages`](crate::api::triton::messages).

#![expect(
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::too_many_lines,
    reason = "generated code; what it means stands in the .proto"
)]

include!(concat!(env!("OUT_DIR"), "/service/inference.rs"));
