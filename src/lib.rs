//! Tessera: a model-assembly inference server.

pub mod api;
pub mod arch;
pub mod bench;
pub mod cli;
pub mod family;
pub mod fit;
pub mod onnx;
pub mod plan;
pub mod runtime;
pub mod serve;
pub mod telemetry;
pub mod tensor;
