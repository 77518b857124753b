//! Inference messages, converted from and to the form that all protocols share.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use crate::{
    api::{
        codec::{
            decode::{Parts, RequestedOutput, RequestedOutputs},
            elements::Values,
            encode::{AnswerHead, raw_bytes, report_parameters},
            raw::narrow,
            tensors::{Content, RequestTensor},
        },
        error::ApiError,
        inference::Answer,
        triton::messages::{
            InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
            infer_parameter::ParameterChoice,
            model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
            model_infer_response::InferOutputTensor,
        },
    },
    serve::ServeError,
    tensor::{Tensor, TensorData, signed},
};

/// Returns the parts of a message. By default, the outputs are raw if the inputs are.
///
/// # Errors
///
/// Fails on elements that are missing or in two places.
pub(super) fn parts(message: ModelInferRequest) -> Result<Parts, ApiError> {
    let is_raw = !message.raw_input_contents.is_empty();
    let (num_raw, num_inputs) = (message.raw_input_contents.len(), message.inputs.len());
    if is_raw && num_raw != num_inputs {
        let reason = format!("there are {num_raw} for {num_inputs} inputs");
        return Err(refuse("raw_input_contents", reason).into());
    }
    let mut raw = message.raw_input_contents.into_iter();
    let inputs = message.inputs.into_iter().map(|input| match raw.next() {
        Some(_) if input.contents.is_some() => {
            Err(refuse(&input.name, "it has both contents and raw_input_contents".to_owned()))
        }
        Some(bytes) => Ok(tensor(input, Content::Raw(bytes))),
        None => typed(input),
    });
    let inputs = inputs.collect::<Result<_, _>>()?;
    let mut parameters = parameters(message.parameters);
    parameters.entry("binary_data_output").or_insert(Value::Bool(is_raw));
    let outputs = message.outputs.into_iter().map(requested).collect();
    let id = Some(message.id).filter(|id| !id.is_empty());
    Ok(Parts { id, parameters, inputs, outputs })
}

/// Writes an answer.
///
/// # Errors
///
/// Fails only on values that a message cannot express; no answer holds them.
pub(super) fn encode(answer: Answer) -> Result<ModelInferResponse, ApiError> {
    let Answer { heading, response, wanted } = answer;
    let parameters = report_parameters(&response.report, heading.explain)?;
    write(Written { heading, parameters, outputs: response.outputs }, &wanted)
}

/// Content of a message.
#[derive(Debug)]
pub(super) struct Written {
    /// Fields beside the parameters and outputs.
    pub(super) heading: AnswerHead,
    /// Parameters by name.
    pub(super) parameters: Map<String, Value>,
    /// Outputs by name.
    pub(super) outputs: Vec<(String, Tensor)>,
}

/// Writes a message. Its outputs are raw if all of them are `wanted` raw. A message holds either
/// raw or typed contents.
///
/// # Errors
///
/// Fails only on values that a message cannot express; no answer holds them.
pub(super) fn write(
    message: Written,
    wanted: &RequestedOutputs,
) -> Result<ModelInferResponse, ApiError> {
    let Written { heading, parameters, outputs: tensors } = message;
    let parameters = parameters.into_iter().filter_map(|(name, value)| {
        let parameter_choice = Some(choice(value)?);
        Some((name, InferParameter { parameter_choice }))
    });
    let is_raw = tensors.iter().all(|(name, _)| wanted.is_binary(name));
    let (mut outputs, mut raw_output_contents) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let shape = tensor.shape().iter().map(|extent| signed(*extent));
        let mut output = InferOutputTensor {
            name,
            datatype: tensor.data_type().name().to_owned(),
            shape: shape.collect(),
            ..InferOutputTensor::default()
        };
        if is_raw {
            raw_output_contents.push(raw_bytes(&tensor)?.into());
        } else {
            output.contents = Some(contents(tensor));
        }
        outputs.push(output);
    }
    Ok(ModelInferResponse {
        model_name: heading.model_name,
        model_version: heading.model_version,
        id: heading.id.unwrap_or_default(),
        parameters: parameters.collect(),
        outputs,
        raw_output_contents,
    })
}

fn requested(output: InferRequestedOutputTensor) -> RequestedOutput {
    RequestedOutput { name: output.name, parameters: parameters(output.parameters) }
}

fn tensor(input: InferInputTensor, content: Content) -> RequestTensor {
    let InferInputTensor { name, datatype, shape, .. } = input;
    RequestTensor { name, datatype, shape, content }
}

/// Takes the elements from the field of the input's datatype.
fn typed(mut input: InferInputTensor) -> Result<RequestTensor, ServeError> {
    let contents = input.contents.take().unwrap_or_default();
    let num_filled = filled(&contents).into_iter().filter(|len| *len > 0).count();
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let (field, content) = match input.datatype.as_str() {
        "BOOL" => ("bool_contents", Content::Flat(Values::Booleans(bool_contents))),
        "INT8" | "INT16" | "INT32" => ("int_contents", integers(int_contents)),
        "INT64" => ("int64_contents", Content::Flat(Values::Integers(int64_contents))),
        "UINT8" | "UINT16" | "UINT32" => ("uint_contents", integers(uint_contents)),
        "UINT64" => ("uint64_contents", large(&input.name, &uint64_contents)?),
        "FP32" => ("fp32_contents", Content::Floats(fp32_contents)),
        "FP64" => ("fp64_contents", Content::Flat(Values::Floats(fp64_contents))),
        "BYTES" => {
            let elements = bytes_contents.into_iter().map(|element| element.to_vec()).collect();
            ("bytes_contents", Content::Flat(Values::Texts(elements)))
        }
        other => {
            let reason = format!("{other} has no typed contents; send raw_input_contents");
            return Err(refuse(&input.name, reason));
        }
    };
    if num_filled > usize::from(content.len() > 0) {
        let reason = format!("{} goes into {field}, and into no other field", input.datatype);
        return Err(refuse(&input.name, reason));
    }
    Ok(tensor(input, content))
}

/// Returns the number of elements of each field.
fn filled(contents: &InferTensorContents) -> [usize; 8] {
    [
        contents.bool_contents.len(),
        contents.int_contents.len(),
        contents.int64_contents.len(),
        contents.uint_contents.len(),
        contents.uint64_contents.len(),
        contents.fp32_contents.len(),
        contents.fp64_contents.len(),
        contents.bytes_contents.len(),
    ]
}

fn integers<T: Into<i64>>(values: Vec<T>) -> Content {
    Content::Flat(Values::Integers(values.into_iter().map(Into::into).collect()))
}

fn large(name: &str, values: &[u64]) -> Result<Content, ServeError> {
    let values = narrow(values).map_err(|reason| refuse(name, reason))?;
    Ok(Content::Flat(Values::Integers(values)))
}

/// Returns a message's parameters in the form in which all protocols' parameters are checked.
fn parameters(parameters: HashMap<String, InferParameter>) -> Map<String, Value> {
    let value = |parameter: InferParameter| match parameter.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => Value::Bool(value),
        Some(ParameterChoice::Int64Param(value)) => Value::from(value),
        Some(ParameterChoice::Uint64Param(value)) => Value::from(value),
        Some(ParameterChoice::StringParam(value)) => Value::String(value),
        // A value that is not a number becomes null, which no parameter takes.
        Some(ParameterChoice::DoubleParam(value)) => {
            Number::from_f64(value).map_or(Value::Null, Value::Number)
        }
        None => Value::Null,
    };
    parameters.into_iter().map(|(name, parameter)| (name, value(parameter))).collect()
}

fn choice(value: Value) -> Option<ParameterChoice> {
    match value {
        Value::Bool(value) => Some(ParameterChoice::BoolParam(value)),
        Value::String(value) => Some(ParameterChoice::StringParam(value)),
        Value::Number(value) => match value.as_i64() {
            Some(value) => Some(ParameterChoice::Int64Param(value)),
            None => value.as_f64().map(ParameterChoice::DoubleParam),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn contents(tensor: Tensor) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    match tensor.into_parts().1 {
        TensorData::F32(values) => contents.fp32_contents = values,
        TensorData::I64(values) => contents.int64_contents = values,
        TensorData::Bytes(elements) => {
            contents.bytes_contents = elements.into_iter().map(Into::into).collect();
        }
    }
    contents
}

fn refuse(name: &str, reason: String) -> ServeError {
    ServeError::Input { name: name.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        api::codec::{bounds::Bounds, decode::Decoded, specs::Specs},
        tensor::{DataType, TensorSpec},
    };

    fn specs() -> Specs {
        let spec = |name: &str, data_type| TensorSpec {
            name: name.to_owned(),
            data_type,
            shape: vec![None],
        };
        Specs {
            inputs: vec![
                spec("text", DataType::Bytes),
                spec("ids", DataType::I64),
                spec("pixels", DataType::F32),
            ],
            outputs: vec![spec("embedding", DataType::F32)],
            num_labels: 0,
            bounds: Bounds { texts: 64, numbers: 64 },
        }
    }

    fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
        ModelInferRequest {
            inputs,
            raw_input_contents: raw.iter().map(|raw| (*raw).into()).collect(),
            ..ModelInferRequest::default()
        }
    }

    fn input(
        name: &str,
        datatype: &str,
        contents: Option<InferTensorContents>,
    ) -> InferInputTensor {
        InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![1],
            contents,
            ..InferInputTensor::default()
        }
    }

    fn decoded(message: ModelInferRequest) -> Result<Decoded, String> {
        parts(message)
            .and_then(|parts| Decoded::new(parts, &specs(), Instant::now()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn typed_elements_come_from_the_field_of_their_type() {
        let none = InferTensorContents::default;
        for (name, datatype, contents, wanted) in [
            (
                "text",
                "BYTES",
                InferTensorContents { bytes_contents: vec!["a".into()], ..none() },
                TensorData::Bytes(vec![b"a".to_vec()]),
            ),
            (
                "ids",
                "BOOL",
                InferTensorContents { bool_contents: vec![true], ..none() },
                TensorData::I64(vec![1]),
            ),
            (
                "ids",
                "INT16",
                InferTensorContents { int_contents: vec![-2], ..none() },
                TensorData::I64(vec![-2]),
            ),
            (
                "ids",
                "UINT64",
                InferTensorContents { uint64_contents: vec![2], ..none() },
                TensorData::I64(vec![2]),
            ),
            (
                "pixels",
                "FP32",
                InferTensorContents { fp32_contents: vec![0.5], ..none() },
                TensorData::F32(vec![0.5]),
            ),
            (
                "pixels",
                "FP64",
                InferTensorContents { fp64_contents: vec![0.5], ..none() },
                TensorData::F32(vec![0.5]),
            ),
        ] {
            let decoded = decoded(request(vec![input(name, datatype, Some(contents))], &[]));
            let decoded = decoded.expect(datatype);
            assert_eq!(decoded.request.inputs[0].1.data(), &wanted, "{datatype}");
            assert!(!decoded.wanted.is_binary("embedding"));
        }
    }

    #[test]
    fn raw_elements_make_the_output_raw() {
        let decoded = decoded(request(vec![input("ids", "INT8", None)], &[&[0xff]]));
        let decoded = decoded.expect("valid");
        assert_eq!(decoded.request.inputs[0].1.data(), &TensorData::I64(vec![-1]));
        assert!(decoded.wanted.is_binary("embedding"));
    }

    #[test]
    fn a_prompt_is_named_by_a_parameter() {
        let mut message = request(vec![input("ids", "INT8", None)], &[&[1]]);
        let parameter_choice = Some(ParameterChoice::StringParam("query".to_owned()));
        message.parameters.insert("prompt_name".to_owned(), InferParameter { parameter_choice });
        let decoded = decoded(message).expect("valid");
        assert_eq!(decoded.request.prompt_name.as_deref(), Some("query"));
    }

    #[test]
    fn elements_that_are_nowhere_or_twice_are_refused() {
        let fp32 = InferTensorContents { fp32_contents: vec![0.5], ..Default::default() };
        let both = InferTensorContents { int64_contents: vec![1], ..fp32.clone() };
        let large = InferTensorContents { uint64_contents: vec![u64::MAX], ..Default::default() };
        for (message, reason) in [
            (request(vec![input("pixels", "FP32", None)], &[]), "has 0 elements"),
            (request(vec![input("pixels", "FP32", Some(both))], &[]), "no other field"),
            (request(vec![input("ids", "INT64", Some(fp32.clone()))], &[]), "no other field"),
            (request(vec![input("pixels", "FP16", Some(fp32.clone()))], &[]), "no typed contents"),
            (request(vec![input("ids", "UINT64", Some(large))], &[]), "does not fit INT64"),
            (request(vec![input("pixels", "FP32", Some(fp32))], &[&[0; 4]]), "both contents and"),
            (request(vec![input("pixels", "FP32", None)], &[&[0; 3]]), "has 3 bytes"),
            (request(vec![], &[&[0; 3]]), "1 for 0 inputs"),
            (request(vec![input("pixels", "FP99", None)], &[&[0; 4]]), "must be FP32"),
        ] {
            let error = decoded(message).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
