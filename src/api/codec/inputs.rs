//! One input of a JSON request; its elements are in the JSON, or behind it as raw bytes.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    bounded,
    elements::Elements,
    tensors::{Content, RequestTensor},
};
use crate::serve::ServeError;

/// Parameter with the number of raw bytes of an input whose elements follow the JSON.
const BINARY_DATA_SIZE: &str = "binary_data_size";

/// An input in the protocol's JSON form.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "InputTensor")]
#[serde(expecting = "an input object")]
pub(super) struct WireInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default, deserialize_with = "bounded::parameters")]
    parameters: Map<String, Value>,
    #[schemars(with = "Option<Vec<Value>>")]
    data: Option<Elements>,
}

/// Raw tensors behind the JSON of a body, in the order of the inputs.
#[derive(Debug)]
pub(super) struct Tail {
    rest: Bytes,
}

impl WireInput {
    /// Takes the input's elements from the JSON or from `tail`.
    ///
    /// # Errors
    ///
    /// Fails on unknown parameters, and on elements that are missing or in two places. Fails if
    /// `tail` is too short.
    pub(super) fn locate(self, tail: &mut Tail) -> Result<RequestTensor, ServeError> {
        let Self { name, shape, datatype, parameters, data } = self;
        let refuse = |reason| ServeError::Input { name: name.clone(), reason };
        let mut size = None;
        for (parameter, value) in &parameters {
            if parameter != BINARY_DATA_SIZE {
                let reason = format!(
                    "unknown parameter `{parameter}`; inputs take `{BINARY_DATA_SIZE}` alone"
                );
                return Err(refuse(reason));
            }
            size = Some(value.as_u64().ok_or_else(|| {
                refuse(format!("{BINARY_DATA_SIZE} is {value}, it must be an integer from 0 on"))
            })?);
        }
        let content = match (data, size) {
            (Some(elements), None) => Content::Nested(elements),
            (None, Some(size)) => Content::Raw(tail.take(size).map_err(refuse)?),
            (Some(_), Some(_)) => {
                return Err(refuse(format!("it has both data and {BINARY_DATA_SIZE}")));
            }
            (None, None) => {
                return Err(refuse(format!("it has no data, and no {BINARY_DATA_SIZE} either")));
            }
        };
        Ok(RequestTensor { name, datatype, shape, content })
    }
}

impl Tail {
    /// Creates a tail of the bytes behind the JSON.
    pub(super) fn new(rest: Bytes) -> Self {
        Self { rest }
    }

    /// Checks that every byte belongs to a tensor.
    ///
    /// # Errors
    ///
    /// Fails if some bytes are left.
    pub(super) fn check_used(&self) -> Result<(), ServeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let reason = format!("{} bytes follow the last tensor", self.rest.len());
        Err(ServeError::Input { name: "the binary data".to_owned(), reason })
    }

    fn take(&mut self, size: u64) -> Result<Bytes, String> {
        let left = self.rest.len();
        match usize::try_from(size).ok().filter(|size| *size <= left) {
            Some(size) => Ok(self.rest.split_to(size)),
            None => Err(format!("{BINARY_DATA_SIZE} is {size}, but {left} bytes are left")),
        }
    }
}

#[cfg(test)]
mod tests {
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
            (ids(json!([1, 1]), "INT8", json!([128])), "128 does not fit INT8"),
            (ids(json!([1, 1]), "UINT32", json!([-1])), "-1 does not fit UINT32"),
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
            (
                json!({"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [true, 1]}),
                "mixes",
            ),
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
}
