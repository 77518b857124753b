//! A tensor of a request, from any protocol's form to the form that the model takes.

use std::ops::RangeInclusive;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    bounded,
    bounds::check,
    elements::{Elements, Values},
    raw::{decode_raw, misfit},
    specs::Specs,
};
use crate::{
    serve::ServeError,
    tensor::{DataType, Tensor, TensorData, TensorSpec},
};

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

/// An input of a request, before it is checked.
#[derive(Debug)]
pub(crate) struct RequestTensor {
    /// Name of the input.
    pub(crate) name: String,
    /// Name of the element type.
    pub(crate) datatype: String,
    /// Extent of each axis.
    pub(crate) shape: Vec<i64>,
    /// Elements of the tensor.
    pub(crate) content: Content,
}

/// Form of the elements.
#[derive(Debug)]
pub(crate) enum Content {
    /// Flat or nested arrays of JSON.
    Nested(Elements),
    /// Numbers, booleans or texts in a row.
    Flat(Values),
    /// `FP32` in a row.
    Floats(Vec<f32>),
    /// The protocol's raw bytes.
    Raw(Bytes),
}

impl Content {
    /// Returns the number of elements, or of raw bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Nested(elements) => elements.values.len(),
            Self::Flat(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Raw(raw) => raw.len(),
        }
    }
}

impl RequestTensor {
    /// Checks the tensor against the model's `specs`, and converts it.
    ///
    /// # Errors
    ///
    /// Fails if the model has no such input, or if datatype, shape or data do not fit it. Fails if
    /// there are more elements than any request has.
    pub(crate) fn into_tensor(self, specs: &Specs) -> Result<(String, Tensor), ServeError> {
        let Self { name, shape, datatype, content } = self;
        let refuse = |reason| ServeError::Input { name: name.clone(), reason };
        let spec = specs.inputs.iter().find(|spec| spec.name == name).ok_or_else(|| {
            refuse(format!("the model has no such input; it has {}", names(&specs.inputs)))
        })?;
        let data_type = parse_data_type(&datatype, spec.data_type).map_err(refuse)?;
        let shape = parse_shape(&shape).map_err(refuse)?;
        let count = num_elements(&shape).map_err(refuse)?;
        // A shape is only a claim; missing elements are refused below.
        let found = count.min(content.len());
        match spec.data_type {
            DataType::Bytes => check("the batch", found, specs.bounds.texts)?,
            _ => {
                check(&format!("the number of elements of `{name}`"), found, specs.bounds.numbers)?
            }
        }
        let data = match content {
            Content::Nested(elements) => check_nesting(&shape, &elements)
                .and_then(|()| check_count(&shape, count, elements.values.len()))
                .and_then(|()| convert(elements.values, data_type)),
            Content::Flat(values) => {
                check_count(&shape, count, values.len()).and_then(|()| convert(values, data_type))
            }
            Content::Floats(values) if data_type == DataType::F32 => {
                check_count(&shape, count, values.len()).map(|()| TensorData::F32(values))
            }
            Content::Floats(_) => Err(format!("data must be {}", wording(data_type))),
            Content::Raw(raw) => decode_raw(&raw, count, data_type, spec.data_type),
        };
        let data = data.map_err(refuse)?;
        let tensor = Tensor::new(shape, data).map_err(|error| refuse(error.to_string()))?;
        Ok((name, tensor))
    }
}

/// Returns the names of `specs` for a message.
pub(crate) fn names(specs: &[TensorSpec]) -> String {
    let names: Vec<String> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    names.join(", ")
}

/// Returns the datatype `name` if it is `wanted` or can be converted to it.
fn parse_data_type(name: &str, wanted: DataType) -> Result<DataType, String> {
    let needed = match wanted {
        DataType::I64 => "INT64, another integer type or BOOL",
        DataType::F32 => "FP32, FP16, BF16 or FP64",
        _ => wanted.name(),
    };
    let is_taken = |found: &DataType| match wanted {
        DataType::I64 => integer_range(*found).is_some(),
        DataType::F32 => is_float(*found),
        _ => *found == wanted,
    };
    let found = DataType::from_name(name).filter(is_taken);
    found.ok_or_else(|| format!("datatype is `{name}`, but must be {needed}"))
}

fn is_float(data_type: DataType) -> bool {
    matches!(data_type, DataType::F16 | DataType::BF16 | DataType::F32 | DataType::F64)
}

/// Returns the extents; [`serve`](crate::serve) checks whether the model takes them.
fn parse_shape(shape: &[i64]) -> Result<Vec<usize>, String> {
    let extents: Option<_> = shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    extents.ok_or_else(|| format!("shape is {shape:?}, but extents must be 0 or more"))
}

/// Returns the number of elements of `shape`.
fn num_elements(shape: &[usize]) -> Result<usize, String> {
    let count = shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(*extent));
    count.ok_or_else(|| format!("shape {shape:?} holds more elements than can be counted"))
}

/// Checks that `data` is flat, or nested like `shape`.
fn check_nesting(shape: &[usize], data: &Elements) -> Result<(), String> {
    let extents = data.extents();
    if extents.len() > 1 && extents != shape {
        return Err(format!("data is nested as {extents:?}, but shape is {shape:?}"));
    }
    Ok(())
}

fn check_count(shape: &[usize], wanted: usize, found: usize) -> Result<(), String> {
    if wanted != found {
        return Err(format!("data has {found} elements, but shape {shape:?} holds {wanted}"));
    }
    Ok(())
}

fn convert(values: Values, data_type: DataType) -> Result<TensorData, String> {
    match (data_type, values) {
        (DataType::Bytes, Values::Texts(values)) => Ok(TensorData::Bytes(values)),
        (DataType::Bytes, Values::Empty) => Ok(TensorData::Bytes(Vec::new())),
        (data_type, values) if is_float(data_type) => to_floats(values).map(TensorData::F32),
        (_, values) => to_integers(values, data_type).map(TensorData::I64),
    }
}

fn to_floats(values: Values) -> Result<Vec<f32>, String> {
    match values {
        Values::Empty => Ok(Vec::new()),
        Values::Floats(values) => {
            values.iter().enumerate().map(|(index, value)| to_f32(index, *value)).collect()
        }
        #[expect(clippy::cast_precision_loss, reason = "FP32 holds what fits of an integer")]
        Values::Integers(values) => Ok(values.into_iter().map(|value| value as f32).collect()),
        Values::Booleans(_) | Values::Texts(_) => {
            Err(format!("data must be {}", wording(DataType::F32)))
        }
    }
}

fn to_f32(index: usize, value: f64) -> Result<f32, String> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to FP32 is what is asked for")]
    let narrow = value as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(misfit(index, DataType::F32)) }
}

fn to_integers(values: Values, data_type: DataType) -> Result<Vec<i64>, String> {
    let refused = || format!("data must be {}", wording(data_type));
    let range = integer_range(data_type).ok_or_else(refused)?;
    match values {
        Values::Empty => Ok(Vec::new()),
        Values::Booleans(values) if data_type == DataType::Bool => {
            Ok(values.into_iter().map(i64::from).collect())
        }
        Values::Integers(values) => match values.iter().position(|value| !range.contains(value)) {
            None => Ok(values),
            Some(index) => Err(misfit(index, data_type)),
        },
        Values::Booleans(_) | Values::Floats(_) | Values::Texts(_) => Err(refused()),
    }
}

fn wording(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Bytes => "strings",
        DataType::Bool => "true and false, or 1 and 0",
        DataType::F16 | DataType::BF16 | DataType::F32 | DataType::F64 => "numbers",
        _ => "integers of at most 64 bits with a sign",
    }
}

/// Returns the values of an integer type that `INT64` can hold, or None for other types. The values
/// of `BOOL` are 0 and 1.
fn integer_range(data_type: DataType) -> Option<RangeInclusive<i64>> {
    match data_type {
        DataType::Bool => Some(0..=1),
        DataType::U8 => Some(0..=i64::from(u8::MAX)),
        DataType::U16 => Some(0..=i64::from(u16::MAX)),
        DataType::U32 => Some(0..=i64::from(u32::MAX)),
        DataType::U64 => Some(0..=i64::MAX),
        DataType::I8 => Some(i64::from(i8::MIN)..=i64::from(i8::MAX)),
        DataType::I16 => Some(i64::from(i16::MIN)..=i64::from(i16::MAX)),
        DataType::I32 => Some(i64::from(i32::MIN)..=i64::from(i32::MAX)),
        DataType::I64 => Some(i64::MIN..=i64::MAX),
        DataType::F16 | DataType::BF16 | DataType::F32 | DataType::F64 | DataType::Bytes => None,
    }
}

#[cfg(test)]
#[path = "tensors_tests.rs"]
mod tests;
