//! Metadata of the server and its models, in the protocol's messages.

use crate::{
    api::{
        http::{
            health::{EXTENSIONS, NAME, VERSION},
            models::PLATFORM,
        },
        inference::Model,
        triton::{
            generate::tensors::{inputs, outputs},
            messages::{
                ModelMetadataResponse, ServerMetadataResponse,
                model_metadata_response::TensorMetadata,
            },
        },
    },
    tensor::TensorSpec,
};

/// Returns the metadata of the server.
pub(super) fn server() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: NAME.to_owned(),
        version: VERSION.to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).into(),
    }
}

/// Returns the metadata of a model.
pub(super) fn model(model: &Model) -> ModelMetadataResponse {
    let tensor = |spec: TensorSpec| TensorMetadata {
        datatype: spec.data_type.name().to_owned(),
        shape: spec.protocol_shape(),
        name: spec.name,
    };
    ModelMetadataResponse {
        name: model.service.name().to_owned(),
        versions: model.versions().into(),
        platform: PLATFORM.to_owned(),
        inputs: inputs(model).into_iter().map(tensor).collect(),
        outputs: outputs(model).into_iter().map(tensor).collect(),
    }
}
