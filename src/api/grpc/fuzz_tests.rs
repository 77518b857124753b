//! Malformed messages in great numbers, which must be read or refused: `make fuzz`.

use std::time::Instant;

use prost::Message;

use super::{codec::encoded::Encoded, infer::decode};
use crate::{
    api::{
        fuzz_tests::specs,
        triton::messages::{
            InferParameter, InferTensorContents, ModelInferRequest,
            infer_parameter::ParameterChoice,
            model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        },
    },
    tensor::mutate::feed,
};

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

#[test]
#[ignore = "takes minutes: make fuzz"]
fn grpc_messages() {
    let budget = InferParameter { parameter_choice: Some(ParameterChoice::DoubleParam(5.5)) };
    let output = InferRequestedOutputTensor { name: "scores".to_owned(), parameters: [].into() };
    let raw = ModelInferRequest {
        model_name: "m".to_owned(),
        id: "7".to_owned(),
        parameters: [("latency_budget_ms".to_owned(), budget)].into(),
        inputs: vec![input("text", "BYTES", &[1]), input("ids", "INT32", &[1, 2])],
        outputs: vec![output],
        raw_input_contents: vec![
            b"\x02\0\0\0bc".to_vec().into(),
            b"\x01\0\0\0\xff\xff\xff\xff".to_vec().into(),
        ],
        ..ModelInferRequest::default()
    };
    let contents = InferTensorContents { fp32_contents: vec![0.5, 1.5], ..Default::default() };
    let mut typed = raw.clone();
    typed.raw_input_contents.clear();
    typed.inputs =
        vec![InferInputTensor { contents: Some(contents), ..input("pixels", "FP32", &[1, 2]) }];
    let specs = specs();
    feed(&[raw.encode_to_vec(), typed.encode_to_vec()], |bytes| {
        let encoded = Encoded::new(bytes.into());
        if let Ok(message) = encoded.open().and_then(|_| encoded.decode(&specs.bounds)) {
            drop(decode(message, &specs, Instant::now()));
        }
    });
}
