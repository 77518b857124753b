//! Tests of tensors in requests.

use serde_json::{Value, json};

use bytes::Bytes;

use super::{Tail, WireInput};
use crate::api::codec::{bounds::Bounds, specs::Specs};
use crate::tensor::{DataType, Tensor, TensorData, TensorSpec};

fn convert(input: Value, tail: &[u8]) -> Result<Tensor, String> {
    let spec = |name: &str, data_type, shape: &[Option<usize>]| TensorSpec {
        name: name.to_owned(),
        data_type,
        shape: shape.to_vec(),
    };
    let specs = Specs {
        inputs: vec![
            spec("text", DataType::Bytes, &[None]),
            spec("ids", DataType::I64, &[None, None]),
            spec("image", DataType::F32, &[None, Some(2)]),
        ],
        outputs: Vec::new(),
        num_labels: 0,
        bounds: Bounds { texts: 2, numbers: 4 },
    };
    let input: WireInput = serde_json::from_value(input).map_err(|e| e.to_string())?;
    let mut tail = Tail::new(Bytes::copy_from_slice(tail));
    let tensor = input.locate(&mut tail).map_err(|e| e.to_string())?;
    tail.check_used().map_err(|e| e.to_string())?;
    tensor.into_tensor(&specs).map(|(_, tensor)| tensor).map_err(|e| e.to_string())
}

fn tensor(shape: &[usize], data: TensorData) -> Tensor {
    Tensor::new(shape.to_vec(), data).expect("a tensor")
}

#[test]
fn inputs_become_tensors() {
    for (input, wanted) in [
        (
            json!({"name": "text", "shape": [1], "datatype": "BYTES", "data": ["é"]}),
            tensor(&[1], TensorData::Bytes(vec!["é".as_bytes().to_vec()])),
        ),
        (
            json!({"name": "ids", "shape": [1, 2], "datatype": "UINT8", "data": [[1, 255]]}),
            tensor(&[1, 2], TensorData::I64(vec![1, 255])),
        ),
        (
            json!({"name": "ids", "shape": [0, 2], "datatype": "INT64", "data": []}),
            tensor(&[0, 2], TensorData::I64(Vec::new())),
        ),
        (
            json!({"name": "ids", "shape": [1, 2], "datatype": "BOOL", "data": [true, false]}),
            tensor(&[1, 2], TensorData::I64(vec![1, 0])),
        ),
        (
            json!({"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [1, 0.5]}),
            tensor(&[1, 2], TensorData::F32(vec![1.0, 0.5])),
        ),
        (
            json!({"name": "image", "shape": [1, 2], "datatype": "BF16", "data": [1, 0.5]}),
            tensor(&[1, 2], TensorData::F32(vec![1.0, 0.5])),
        ),
    ] {
        assert_eq!(convert(input.clone(), b""), Ok(wanted), "{input}");
    }
}

#[test]
fn wrong_inputs_are_refused_with_what_would_be_right() {
    let ids = |shape: Value, datatype: &str, data: Value| {
        let name = "ids";
        json!({"name": name, "shape": shape, "datatype": datatype, "data": data})
    };
    for (input, reason) in [
        (json!({"name": "x", "shape": [], "datatype": "FP32", "data": []}), "`text`, `ids`"),
        (ids(json!([1, 1]), "FP32", json!([1])), "must be INT64"),
        (ids(json!([1, 1]), "int64", json!([1])), "`int64`, but must be INT64"),
        (ids(json!([-1, 1]), "INT64", json!([1])), "extents must be 0 or more"),
        (ids(json!([1, 2]), "INT64", json!([1])), "has 1 elements"),
        (ids(json!([1, 1]), "INT64", json!([1, 2])), "has 2 elements"),
        (ids(json!([i64::MAX, 3]), "INT64", json!([1])), "more elements"),
        (ids(json!([1, 2]), "INT64", json!([[1], [2]])), "nested as [2, 1]"),
        (ids(json!([1, 1]), "INT64", json!([1.0])), "must be integers"),
        (ids(json!([1, 1]), "INT64", json!(["1"])), "must be integers"),
        (ids(json!([1, 1]), "INT8", json!([128])), "element 0 does not fit INT8"),
        (ids(json!([1, 1]), "UINT32", json!([-1])), "element 0 does not fit UINT32"),
        (
            json!({"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [1e39, 0]}),
            "does not fit FP32",
        ),
        (
            json!({"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}),
            "must be strings",
        ),
        (
            json!({
                "name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"],
                "parameters": {"binary_data_size": 3}
            }),
            "both data and binary_data_size",
        ),
        (
            json!({
                "name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"],
                "parameters": {"shared_memory_region": "r"}
            }),
            "unknown parameter `shared_memory_region`",
        ),
        (json!({"name": "text", "shape": [1], "datatype": "BYTES"}), "no data"),
        (json!({"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [true, 1]}), "mixes"),
        (
            json!({"name": "image", "shape": [1, 1], "datatype": "FP32", "data": [true]}),
            "must be numbers",
        ),
    ] {
        let error = convert(input.clone(), b"").expect_err(&input.to_string());
        assert!(error.contains(reason), "{input}: {error}");
    }
}

#[test]
fn raw_tensors_are_taken_from_behind_the_header() {
    let image = |size: Value| {
        json!({"name": "image", "shape": [1, 2], "datatype": "FP16",
               "parameters": {"binary_data_size": size}})
    };
    let raw = [0, 0x3c, 0, 0xc0];
    let wanted = tensor(&[1, 2], TensorData::F32(vec![1.0, -2.0]));
    assert_eq!(convert(image(json!(4)), &raw), Ok(wanted));
    for (size, reason) in [
        (json!(5), "binary_data_size is 5, but 4 bytes are left"),
        (json!(u64::MAX), "but 4 bytes are left"),
        (json!(3), "1 bytes follow the last tensor"),
        (json!(-4), "must be an integer from 0 on"),
        (json!("4"), "must be an integer from 0 on"),
    ] {
        let error = convert(image(size), &raw).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let error = convert(image(json!(2)), &raw[..2]).expect_err("too short");
    assert!(error.contains("has 2 bytes, but 2 FP16 of 2 bytes each"), "{error}");
}
