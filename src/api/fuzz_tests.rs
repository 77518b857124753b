//! Malformed requests in great numbers, which must be answered or refused: `make fuzz`.

use std::time::Instant;

use bytes::Bytes;
use serde_json::json;

use super::{
    codec::{bounds::Bounds, decode::decode, specs::Specs},
    http::openai::Question,
};
use crate::tensor::{DataType, TensorSpec, mutate::feed};

/// Returns the specs of a model with an input of every type.
pub(super) fn specs() -> Specs {
    let spec = |name: &str, data_type, shape: &[Option<usize>]| TensorSpec {
        name: name.to_owned(),
        data_type,
        shape: shape.to_vec(),
    };
    Specs {
        inputs: vec![
            spec("text", DataType::Bytes, &[None]),
            spec("ids", DataType::I64, &[None, None]),
            spec("pixels", DataType::F32, &[None, Some(2)]),
        ],
        outputs: vec![spec("scores", DataType::F32, &[None, Some(3)])],
        num_labels: 3,
        bounds: Bounds { texts: 64, numbers: 4096 },
    }
}

#[test]
#[ignore = "takes minutes: make fuzz"]
fn json_requests() {
    let seeds = [
        json!({
            "id": "7",
            "parameters": {"latency_budget_ms": 5.5, "min_quality": 0.5, "plan": "a[0..2]",
                           "explain": true, "priority": 1, "timeout": 1000},
            "inputs": [
                {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "é\u{1f600}"]},
                {"name": "ids", "shape": [1, 3], "datatype": "INT64", "data": [[1, -2, 3]]},
                {"name": "pixels", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1e-3]},
            ],
            "outputs": [{"name": "scores", "parameters": {"classification": 2}}],
        }),
        json!({"inputs": [{"name": "pixels", "shape": [2, 2], "datatype": "FP16",
                           "data": [[1, 2], [3, 4]]}]}),
    ];
    let specs = specs();
    feed(&seeds.map(|seed| seed.to_string().into_bytes()), |body| {
        drop(decode(Bytes::from(body), None, &specs, Instant::now()));
    });
}

#[test]
#[ignore = "takes minutes: make fuzz"]
fn binary_bodies() {
    let head = json!({
        "inputs": [
            {"name": "text", "shape": [2], "datatype": "BYTES",
             "parameters": {"binary_data_size": 11}},
            {"name": "ids", "shape": [1, 2], "datatype": "INT16",
             "parameters": {"binary_data_size": 4}},
            {"name": "pixels", "shape": [1, 2], "datatype": "BF16",
             "parameters": {"binary_data_size": 4}},
        ],
        "outputs": [{"name": "scores", "parameters": {"binary_data": true}}],
    })
    .to_string()
    .into_bytes();
    let json_len = head.len();
    let raw = b"\x01\0\0\0a\x02\0\0\0bc\x01\0\xff\xff\x80\x3f\0\x40".to_vec();
    let specs = specs();
    // The first run changes only the raw bytes after the JSON, the second one the whole body.
    feed(std::slice::from_ref(&raw), |raw| {
        let body = [head.clone(), raw].concat();
        drop(decode(Bytes::from(body), Some(json_len), &specs, Instant::now()));
    });
    feed(&[[head.clone(), raw.clone()].concat()], |body| {
        drop(decode(Bytes::from(body), Some(json_len), &specs, Instant::now()));
    });
}

#[test]
#[ignore = "takes minutes: make fuzz"]
fn embeddings_requests() {
    let seeds = [
        json!({"model": "text", "input": ["a", "b"], "encoding_format": "base64",
               "dimensions": 8, "latency_budget_ms": 5}),
        json!({"model": "text", "input": [[1, 2], [3]], "user": "me"}),
    ];
    feed(&seeds.map(|seed| seed.to_string().into_bytes()), |body| {
        drop(super::codec::body::parse_json::<Question>(
            &body,
            &Bounds { texts: 64, numbers: 4096 },
        ));
    });
}
