//! Tessera: a model-assembly inference server.

pub mod api;
pub mod app;
pub mod arch;
pub mod assembly;
pub mod bench;
pub mod cli;
pub mod family;
pub mod fit;
pub mod input;
pub mod module;
pub mod offer;
pub mod onnx;
pub mod picture;
pub mod plan;
pub mod pool;
pub mod runtime;
pub mod serve;
pub mod telemetry;
pub mod tensor;
