//! Malformed messages in great numbers, which must be read or refused: `make fuzz`.

use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;

use super::{
    codec::{Readable, encoded::Encoded},
    infer::parts,
    layers::wait_of,
};
use crate::{
    api::{
        codec::decode::Decoded,
        fuzz_tests::{accepted, specs},
        triton::messages::{
            InferParameter, InferTensorContents, ModelInferRequest, ModelReadyRequest,
            ModelRepositoryParameter, RepositoryIndexRequest, RepositoryModelLoadRequest,
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

/// Returns a request with raw contents, and one with typed contents.
fn requests() -> [ModelInferRequest; 2] {
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
    [raw, typed]
}

#[test]
fn grpc_messages() {
    let specs = specs();
    feed(&requests().map(|request| request.encode_to_vec()), |bytes| {
        let encoded = Encoded::new(bytes.into());
        let Some(envelope) = accepted(encoded.open()) else { return };
        let Some(message) = accepted(encoded.decode(&specs.bounds)) else { return };
        assert_eq!(envelope.model_name, message.model_name);
        let again = message.encode_to_vec();
        // Numbers that are not equal to themselves have equal bytes; the order of parameters in
        // their map is not kept.
        let read = ModelInferRequest::decode(&again[..]).expect("as written");
        assert_eq!(read.encoded_len(), again.len());
        let Some(parts) = accepted(parts(message)) else { return };
        accepted(Decoded::new(parts, &specs, Instant::now()));
    });
}

#[test]
fn small_messages() {
    let choice = ModelRepositoryParameter::default();
    let load = RepositoryModelLoadRequest {
        repository_name: "a".to_owned(),
        model_name: "text".to_owned(),
        parameters: [("unload_dependents".to_owned(), choice)].into(),
    };
    let ready = ModelReadyRequest { name: "text".to_owned(), version: "1".to_owned() };
    let index = RepositoryIndexRequest { repository_name: "a".to_owned(), ready: true };
    feed(&[load.encode_to_vec(), ready.encode_to_vec(), index.encode_to_vec()], |bytes| {
        accepted(RepositoryModelLoadRequest::read(bytes.clone().into()));
        accepted(RepositoryIndexRequest::read(bytes.clone().into()));
        if let Some(ready) = accepted(ModelReadyRequest::read(bytes.into())) {
            let again = ModelReadyRequest::read(ready.encode_to_vec().into());
            assert_eq!(again.expect("as written"), ready);
        }
    });
}

#[test]
fn timeouts() {
    let seeds = ["1S", "99999999H", "5m", "18446744073709551615n"];
    feed(&seeds.map(|seed| seed.as_bytes().to_vec()), |bytes| {
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return };
        let name = HeaderName::from_static("grpc-timeout");
        if let Some(wait) = wait_of(&HeaderMap::from_iter([(name, value)])) {
            assert!(Instant::now().checked_add(wait).is_some(), "{wait:?}");
        }
    });
}
