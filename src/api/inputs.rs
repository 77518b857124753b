//! One input of a request, from its wire form to a tensor.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::elements::{Elements, Values};
use crate::{
    serve::ServeError,
    tensor::{DataType, Tensor, TensorData, TensorSpec},
};

/// An input as the protocol writes it.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an input object")]
pub(super) struct WireInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Elements,
}

impl WireInput {
    /// Checks the input against the model's `specs` and converts it.
    ///
    /// # Errors
    ///
    /// Fails when the model has no such input, or when datatype, shape or data are not what it
    /// takes.
    pub(super) fn into_tensor(self, specs: &[TensorSpec]) -> Result<(String, Tensor), ServeError> {
        let Self { name, shape, datatype, parameters, data } = self;
        let refuse = |reason| ServeError::Input { name: name.clone(), reason };
        let spec = specs.iter().find(|spec| spec.name == name).ok_or_else(|| {
            refuse(format!("the model has no such input; it has {}", names(specs)))
        })?;
        if let Some(parameter) = parameters.keys().next() {
            return Err(refuse(format!("unknown parameter `{parameter}`; inputs take none")));
        }
        let data_type = parse_data_type(&datatype, spec.data_type).map_err(refuse)?;
        let shape = parse_shape(&shape).map_err(refuse)?;
        check_extents(&shape, &data).map_err(refuse)?;
        let data = convert(data.values, data_type).map_err(refuse)?;
        let tensor = Tensor::new(shape, data).map_err(|error| refuse(error.to_string()))?;
        Ok((name, tensor))
    }
}

/// Returns the names of `specs`, for a message.
pub(super) fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    names.join(", ")
}

/// Finds the datatype, which is the wanted one or, where that is an integer, any integer.
fn parse_data_type(name: &str, wanted: DataType) -> Result<DataType, String> {
    match DataType::from_name(name) {
        Some(found) if found == wanted => Ok(found),
        Some(found) if wanted == DataType::I64 && integer_range(found).is_some() => Ok(found),
        _ if wanted == DataType::I64 => {
            Err(format!("datatype is `{name}`, but must be INT64 or a smaller integer type"))
        }
        _ => Err(format!("datatype is `{name}`, but must be {wanted}")),
    }
}

/// Reads the extents; whether the model takes them is for [`serve`](crate::serve) to say.
fn parse_shape(shape: &[i64]) -> Result<Vec<usize>, String> {
    let extents: Option<_> = shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    extents.ok_or_else(|| format!("shape is {shape:?}, but extents must be 0 or more"))
}

/// Checks that `data` is flat or nested like `shape`, and holds as many elements.
fn check_extents(shape: &[usize], data: &Elements) -> Result<(), String> {
    let extents = data.extents();
    if extents.len() > 1 && extents != shape {
        return Err(format!("data is nested as {extents:?}, but shape is {shape:?}"));
    }
    let num_wanted = shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(*extent));
    match num_wanted {
        None => Err(format!("shape {shape:?} holds more elements than can be counted")),
        Some(wanted) if wanted != data.values.len() => {
            let found = data.values.len();
            Err(format!("data has {found} elements, but shape {shape:?} holds {wanted}"))
        }
        Some(_) => Ok(()),
    }
}

fn convert(values: Values, data_type: DataType) -> Result<TensorData, String> {
    match (data_type, values) {
        (DataType::Bytes, Values::Texts(values)) => Ok(TensorData::Bytes(values)),
        (DataType::Bytes, Values::Empty) => Ok(TensorData::Bytes(Vec::new())),
        (DataType::F32, Values::Floats(values)) => {
            values.into_iter().map(to_f32).collect::<Result<_, _>>().map(TensorData::F32)
        }
        (DataType::F32, Values::Integers(values)) => Ok(TensorData::F32(
            #[expect(clippy::cast_precision_loss, reason = "FP32 holds what fits of an integer")]
            values.into_iter().map(|value| value as f32).collect(),
        )),
        (DataType::F32, Values::Empty) => Ok(TensorData::F32(Vec::new())),
        (_, values) => to_integers(values, data_type).map(TensorData::I64),
    }
}

fn to_f32(value: f64) -> Result<f32, String> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to FP32 is what is asked for")]
    let narrow = value as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(format!("{value:e} does not fit FP32")) }
}

fn to_integers(values: Values, data_type: DataType) -> Result<Vec<i64>, String> {
    let refused = || format!("data must be {}", wording(data_type));
    let range = integer_range(data_type).ok_or_else(refused)?;
    match values {
        Values::Empty => Ok(Vec::new()),
        Values::Integers(values) => match values.iter().find(|value| !range.contains(value)) {
            None => Ok(values),
            Some(value) => Err(format!("{value} does not fit {data_type}")),
        },
        Values::Floats(_) | Values::Texts(_) => Err(refused()),
    }
}

fn wording(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Bytes => "strings",
        DataType::F32 => "numbers",
        _ => "integers of at most 64 bits with a sign",
    }
}

/// Returns the values of an integer type, as far as `INT64` has them.
fn integer_range(data_type: DataType) -> Option<RangeInclusive<i64>> {
    match data_type {
        DataType::U8 => Some(0..=i64::from(u8::MAX)),
        DataType::U16 => Some(0..=i64::from(u16::MAX)),
        DataType::U32 => Some(0..=i64::from(u32::MAX)),
        DataType::U64 => Some(0..=i64::MAX),
        DataType::I8 => Some(i64::from(i8::MIN)..=i64::from(i8::MAX)),
        DataType::I16 => Some(i64::from(i16::MIN)..=i64::from(i16::MAX)),
        DataType::I32 => Some(i64::from(i32::MIN)..=i64::from(i32::MAX)),
        DataType::I64 => Some(i64::MIN..=i64::MAX),
        DataType::Bool
        | DataType::F16
        | DataType::BF16
        | DataType::F32
        | DataType::F64
        | DataType::Bytes => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::WireInput;
    use crate::tensor::{DataType, Tensor, TensorData, TensorSpec};

    fn convert(input: Value) -> Result<Tensor, String> {
        let spec = |name: &str, data_type, shape: &[Option<usize>]| TensorSpec {
            name: name.to_owned(),
            data_type,
            shape: shape.to_vec(),
        };
        let specs = [
            spec("text", DataType::Bytes, &[None]),
            spec("ids", DataType::I64, &[None, None]),
            spec("image", DataType::F32, &[None, Some(2)]),
        ];
        let input: WireInput = serde_json::from_value(input).map_err(|e| e.to_string())?;
        input.into_tensor(&specs).map(|(_, tensor)| tensor).map_err(|e| e.to_string())
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
                json!({"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [1, 0.5]}),
                tensor(&[1, 2], TensorData::F32(vec![1.0, 0.5])),
            ),
        ] {
            assert_eq!(convert(input.clone()), Ok(wanted), "{input}");
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
                "unknown parameter `binary_data_size`",
            ),
        ] {
            let error = convert(input.clone()).expect_err(&input.to_string());
            assert!(error.contains(reason), "{input}: {error}");
        }
    }
}
