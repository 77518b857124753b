//! Tessera: a model-assembly inference server.

pub mod arch;
pub mod family;
pub mod onnx;
pub mod runtime;
pub mod tensor;
