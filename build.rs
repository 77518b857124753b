//! Generates the gRPC code from `proto/`, without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost::Message;

/// Messages that HTTP writes as JSON under the same names.
const IN_JSON: [&str; 10] = [
    "ModelConfig",
    "ModelInput",
    "ModelOutput",
    "ModelParameter",
    "ModelTransactionPolicy",
    "ModelStatistics",
    "InferStatistics",
    "InferBatchStatistics",
    "StatisticDuration",
    "RepositoryIndexResponse.ModelIndex",
];

/// How `ModelInput` and `ModelOutput` write an element type, which the message has as a number.
const BY_NAME: &str = "#[serde(serialize_with = \"crate::api::triton::describe::data_type_name\")] \
                       #[schemars(with = \"String\")]";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/inference.proto");
    let descriptors = protox::compile(["inference.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Server reflection tells clients what is in it.
    fs::write(out.join("inference.bin"), descriptors.encode_to_vec())?;
    // `Bytes` fields are slices of the message that came in: raw tensors are not copied.
    let mut builder =
        tonic_prost_build::configure().build_client(false).build_server(false).bytes(".inference");
    for message in IN_JSON {
        let path = format!(".inference.{message}");
        builder = builder.type_attribute(path, "#[derive(serde::Serialize, schemars::JsonSchema)]");
    }
    for tensor in ["ModelInput", "ModelOutput"] {
        builder = builder.field_attribute(format!(".inference.{tensor}.data_type"), BY_NAME);
    }
    builder.compile_fds(descriptors.clone())?;
    let service = out.join("service");
    fs::create_dir_all(&service)?;
    // Requests are handed over as they came, so that they are bounded before they are decoded.
    tonic_prost_build::configure()
        .build_client(false)
        .out_dir(service)
        .codec_path("crate::api::grpc::codec::BoundedCodec")
        .extern_path(".inference", "crate::api::triton::messages")
        .extern_path(".inference.ModelInferRequest", "crate::api::grpc::codec::encoded::Encoded")
        .compile_fds(descriptors)?;
    Ok(())
}
