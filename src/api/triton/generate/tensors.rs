//! Tensors of requests for text and of their answers.

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Map, Value};

use super::question::Question;
use crate::{
    api::{
        codec::{
            bounded::{MAX_PARAMETERS, MAX_TENSORS},
            bounds::{Bounds, check},
            decode::{Parts, RequestedOutputs},
            object::JsonObject,
            parameters::{EMPTY_FINAL, shorten},
            specs::Specs,
        },
        error::ApiError,
        http::generate::fields::{refused, wrong},
        inference::Model,
    },
    tensor::{DataType, Tensor, TensorData, TensorSpec},
};

/// Input of the text to continue.
const TEXT_INPUT: &str = "text_input";
/// Input of parameters as a JSON object.
const SAMPLING_PARAMETERS: &str = "sampling_parameters";
/// Parameter by which outputs are raw.
const BINARY: &str = "binary_data_output";

/// Outputs of an answer.
pub(super) const TEXT_OUTPUT: &str = "text_output";
pub(super) const FINISH_REASON: &str = "finish_reason";
pub(super) const CUMULATIVE_LOGPROB: &str = "cumulative_logprob";
pub(super) const LOGPROBS: &str = "logprobs";
pub(super) const NUM_INPUT_TOKENS: &str = "num_input_tokens";
pub(super) const NUM_OUTPUT_TOKENS: &str = "num_output_tokens";

/// Inputs that are switches.
const SWITCHES: [&str; 7] = [
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
];

/// Returns whether `model` generates text.
pub(crate) fn generates(model: &Model) -> bool {
    model.service.language().is_some()
}

/// Returns the inputs of `model`, those of requests for text first.
pub(crate) fn inputs(model: &Model) -> Vec<TensorSpec> {
    let mut inputs = if generates(model) { text_inputs() } else { Vec::new() };
    inputs.extend(model.service.input_specs());
    inputs
}

/// Returns the outputs of `model`, those of answers with text first.
pub(crate) fn outputs(model: &Model) -> Vec<TensorSpec> {
    let mut outputs = if generates(model) { text_outputs() } else { Vec::new() };
    outputs.extend(model.service.output_specs());
    outputs
}

/// Returns the tensors and bounds of requests for text.
fn text_specs() -> Specs {
    let bounds = Bounds { texts: MAX_TENSORS, numbers: MAX_TENSORS };
    Specs { inputs: text_inputs(), outputs: text_outputs(), num_labels: 0, bounds }
}

fn text_inputs() -> Vec<TensorSpec> {
    let one = |name: &str, data_type| spec(name, data_type, Some(1));
    let texts = [TEXT_INPUT, SAMPLING_PARAMETERS].map(|name| one(name, DataType::Bytes));
    texts.into_iter().chain(SWITCHES.map(|name| one(name, DataType::Bool))).collect()
}

fn text_outputs() -> Vec<TensorSpec> {
    vec![
        spec(TEXT_OUTPUT, DataType::Bytes, None),
        spec(FINISH_REASON, DataType::Bytes, None),
        spec(CUMULATIVE_LOGPROB, DataType::F32, None),
        spec(LOGPROBS, DataType::Bytes, None),
        spec(NUM_INPUT_TOKENS, DataType::I64, Some(1)),
        spec(NUM_OUTPUT_TOKENS, DataType::I64, None),
    ]
}

fn spec(name: &str, data_type: DataType, extent: Option<usize>) -> TensorSpec {
    TensorSpec { name: name.to_owned(), data_type, shape: vec![extent] }
}

/// A request for text that came as tensors.
#[derive(Debug)]
pub(crate) struct TensorQuestion {
    /// Id of the request, which the answer repeats.
    pub(crate) id: Option<String>,
    /// The request without its form.
    pub(crate) question: Question,
    /// Outputs that the answer has, and their form.
    pub(crate) wanted: RequestedOutputs,
    /// Whether a stream ends with an answer without outputs.
    pub(crate) has_empty_final: bool,
}

/// Returns whether a request has an input of requests for text.
pub(crate) fn is_text(parts: &Parts) -> bool {
    let is_text = |name: &str| [TEXT_INPUT, SAMPLING_PARAMETERS].contains(&name);
    let mut names = parts.inputs.iter().map(|input| input.name.as_str());
    names.any(|name| is_text(name) || SWITCHES.contains(&name))
}

impl TensorQuestion {
    /// Reads a request that arrived at `arrival`. Of a key in several places, an input counts
    /// before `sampling_parameters`, and those before parameters.
    ///
    /// # Errors
    ///
    /// Fails on names, types, shapes and values that are not valid.
    pub(crate) fn read(parts: Parts, arrival: Instant) -> Result<Self, ApiError> {
        let Parts { id, mut parameters, inputs, outputs } = parts;
        let specs = text_specs();
        let is_binary = take_switch(&mut parameters, BINARY)?;
        let has_empty_final = take_switch(&mut parameters, EMPTY_FINAL)?;
        for (name, value) in &parameters {
            if value.is_array() || value.is_object() {
                let expected = "a string, a number, true or false; others go into \
                                sampling_parameters";
                return Err(wrong(name, shorten(value), expected));
            }
        }
        let (wanted, _) = RequestedOutputs::read(outputs, &specs, is_binary)?;
        let mut elements = BTreeMap::new();
        for input in inputs {
            let (name, tensor) = input.into_tensor(&specs)?;
            let element = one(&name, tensor)?;
            if elements.insert(name.clone(), element).is_some() {
                return Err(refused(&name, "it is given twice".to_owned()));
            }
        }
        let text = elements.remove(TEXT_INPUT);
        if let Some(Element::Text(json)) = elements.remove(SAMPLING_PARAMETERS) {
            add(&mut parameters, JsonObject::parse(json.as_bytes())?.rest().fields)?;
        }
        add(&mut parameters, elements.into_iter().map(|(name, own)| (name, own.into())))?;
        check("the number of parameters", parameters.len(), MAX_PARAMETERS)?;
        let Some(Element::Text(text)) = text else {
            return Err(refused(TEXT_INPUT, "it is missing".to_owned()));
        };
        let question = Question::new(text, parameters, arrival)?;
        Ok(Self { id, question, wanted, has_empty_final })
    }
}

/// Adds `more` to the parameters of a request. Clients may send a parameter twice, but not with two
/// values.
pub(crate) fn add(
    parameters: &mut Map<String, Value>,
    more: impl IntoIterator<Item = (String, Value)>,
) -> Result<(), ApiError> {
    for (name, value) in more {
        let is_other = parameters.get(&name).is_some_and(|known| *known != value);
        if is_other {
            return Err(wrong(&name, "there twice", "one value"));
        }
        parameters.insert(name, value);
    }
    Ok(())
}

/// Takes a parameter that is true or false; one that is absent is false.
fn take_switch(parameters: &mut Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match parameters.remove(name) {
        None => Ok(false),
        Some(Value::Bool(switch)) => Ok(switch),
        Some(value) => Err(wrong(name, shorten(&value), "true or false")),
    }
}

/// The element of an input.
enum Element {
    Text(String),
    Switch(bool),
}

impl From<Element> for Value {
    fn from(element: Element) -> Self {
        match element {
            Element::Text(text) => Self::String(text),
            Element::Switch(switch) => Self::Bool(switch),
        }
    }
}

fn one(name: &str, tensor: Tensor) -> Result<Element, ApiError> {
    let (shape, data) = tensor.into_parts();
    let element = match data {
        TensorData::Bytes(mut texts) if texts.len() == 1 => texts.pop().map(|text| {
            let text = String::from_utf8(text);
            text.map(Element::Text).map_err(|_| refused(name, "it is not UTF-8".to_owned()))
        }),
        TensorData::I64(values) if values.len() == 1 => Some(Ok(Element::Switch(values[0] != 0))),
        _ => None,
    };
    let several =
        || Err(refused(name, format!("its shape is {shape:?}, it must have one element")));
    element.unwrap_or_else(several)
}
