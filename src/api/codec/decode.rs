//! An inference request, from its wire form to the request that [`serve`](crate::serve) takes.

use std::time::Instant;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    body::parse_json,
    bounded::{self, Bounded, MAX_TENSORS},
    bounds::{Bounds, check},
    parameters::{Parameters, ParametersSchema},
    specs::Specs,
    tensors::{RequestTensor, Tail, WireInput, names},
};
use crate::{
    api::error::ApiError,
    serve::{InferRequest, ServeError},
};

/// A decoded request, and the settings of its answer.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The request to the family.
    pub(crate) request: InferRequest,
    /// Id of the request, which the answer repeats.
    pub(crate) id: Option<String>,
    /// Whether the answer explains how it came about.
    pub(crate) explain: bool,
    /// Number of best classes that the answer names in place of all scores; `None` keeps the
    /// scores.
    pub(crate) classification: Option<usize>,
    /// Outputs that the answer has, and their form.
    pub(crate) wanted: RequestedOutputs,
}

/// Outputs that an answer has, and whether they are raw bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestedOutputs {
    /// Requested outputs by name; empty for all outputs. The flag is whether the output is raw
    /// bytes; `None` stands for the value of `binary`.
    outputs: Vec<(String, Option<bool>)>,
    /// Whether outputs without a flag are raw bytes behind the JSON.
    binary: bool,
}

impl RequestedOutputs {
    /// Creates a value for all outputs as raw bytes.
    #[cfg(test)]
    pub(crate) fn raw() -> Self {
        Self { outputs: Vec::new(), binary: true }
    }

    /// Reads the outputs that a request asks for, and the number of best classes in place of all
    /// scores, if it has one. Outputs are raw bytes if `binary` is true and they do not say.
    ///
    /// # Errors
    ///
    /// Fails on names and parameters that are not those of outputs in `specs`.
    pub(crate) fn read(
        outputs: Vec<RequestedOutput>,
        specs: &Specs,
        binary: bool,
    ) -> Result<(Self, Option<usize>), ApiError> {
        check("the number of outputs", outputs.len(), MAX_TENSORS)?;
        let mut classification = None;
        let mut wanted = Self { outputs: Vec::new(), binary };
        for output in outputs {
            let name = output.name.clone();
            let asked = output.check(specs)?;
            classification = asked.classification.or(classification);
            wanted.outputs.push((name, asked.binary));
        }
        Ok((wanted, classification))
    }

    /// Returns whether the answer has the output `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|(known, _)| known == name)
    }

    /// Returns whether the output `name` is written as raw bytes.
    pub(crate) fn is_binary(&self, name: &str) -> bool {
        let asked = self.outputs.iter().find(|(known, _)| known == name);
        asked.and_then(|(_, binary)| *binary).unwrap_or(self.binary)
    }
}

/// A request of any protocol, before it is checked.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Id of the request, which the answer repeats.
    pub(crate) id: Option<String>,
    /// The parameters of the request.
    pub(crate) parameters: Map<String, Value>,
    /// The inputs.
    pub(crate) inputs: Vec<RequestTensor>,
    /// Outputs that the request asks for; empty for all outputs.
    pub(crate) outputs: Vec<RequestedOutput>,
}

/// Unknown keys are ignored, as the protocol demands; unknown parameters are not.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "InferRequest")]
#[serde(expecting = "a JSON object with `inputs`")]
pub(crate) struct WireRequest {
    id: Option<String>,
    #[serde(default, deserialize_with = "bounded::parameters")]
    #[schemars(with = "ParametersSchema")]
    parameters: Map<String, Value>,
    #[schemars(with = "Vec<WireInput>")]
    inputs: Bounded<WireInput>,
    #[serde(default, deserialize_with = "bounded::or_default")]
    #[schemars(with = "Vec<RequestedOutput>")]
    outputs: Bounded<RequestedOutput>,
}

/// An output that a request asks for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an output object")]
pub(crate) struct RequestedOutput {
    /// Name of the output.
    pub(crate) name: String,
    /// Parameters that set the form of the output.
    #[serde(default, deserialize_with = "bounded::parameters")]
    pub(crate) parameters: Map<String, Value>,
}

/// Reads the parts of a request from `body`. Its JSON ends after `json_len` bytes, or with the body
/// if `json_len` is `None`.
///
/// # Errors
///
/// Fails on a body that is not JSON of the protocol's form, or that holds more than `bounds` allow.
pub(crate) fn read_parts(
    mut body: Bytes,
    json_len: Option<usize>,
    bounds: &Bounds,
) -> Result<Parts, ApiError> {
    let found = body.len();
    let json_len = json_len.unwrap_or(found);
    if json_len > found {
        return Err(ApiError::JsonLength { found: json_len.to_string(), limit: found });
    }
    let json = body.split_to(json_len);
    let WireRequest { id, parameters, inputs, outputs } = parse_json(&json, bounds)?;
    let outputs = outputs.checked("the number of outputs")?;
    let mut tail = Tail::new(body);
    let inputs = inputs.checked("the number of inputs")?.into_iter();
    let inputs = inputs.map(|input| input.locate(&mut tail)).collect::<Result<_, _>>()?;
    tail.check_used()?;
    Ok(Parts { id, parameters, inputs, outputs })
}

impl Decoded {
    /// Checks a request that arrived at `arrival` against the model's `specs`.
    ///
    /// # Errors
    ///
    /// Fails on names, types, shapes and parameters that the model does not take.
    pub(crate) fn new(parts: Parts, specs: &Specs, arrival: Instant) -> Result<Self, ApiError> {
        let Parts { id, parameters, inputs, outputs } = parts;
        check("the number of inputs", inputs.len(), MAX_TENSORS)?;
        let Parameters { budget, prompt_name, priority, explain, binary } =
            Parameters::parse(parameters)?;
        let (wanted, classification) = RequestedOutputs::read(outputs, specs, binary)?;
        let inputs = inputs.into_iter().map(|input| input.into_tensor(specs));
        let inputs = inputs.collect::<Result<_, _>>()?;
        let request = InferRequest { inputs, prompt_name, budget, priority, arrival };
        Ok(Self { request, id, explain, classification, wanted })
    }
}

/// Form of an output, as far as the request sets it.
#[derive(Debug, Default)]
struct Form {
    classification: Option<usize>,
    binary: Option<bool>,
}

impl RequestedOutput {
    fn check(self, specs: &Specs) -> Result<Form, ApiError> {
        let Self { name, parameters } = self;
        if !specs.outputs.iter().any(|spec| spec.name == name) {
            return Err(ApiError::UnknownOutput { name, known: names(&specs.outputs) });
        }
        let mut form = Form::default();
        for (parameter, value) in parameters {
            match (parameter.as_str(), &value) {
                ("binary_data", Value::Bool(binary)) => form.binary = Some(*binary),
                ("classification", _) if specs.num_labels > 0 => {
                    form.classification = Some(num_classes(&name, &value, specs.num_labels)?);
                }
                _ => {
                    let known = "binary_data = true or false, and classification where there are \
                                 labels";
                    let known = known.into();
                    return Err(ApiError::UnknownParameter { name: parameter, known });
                }
            }
        }
        Ok(form)
    }
}

fn num_classes(output: &str, value: &Value, most: usize) -> Result<usize, ServeError> {
    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
    count.filter(|count| (1..=most).contains(count)).ok_or_else(|| ServeError::Input {
        name: output.to_owned(),
        reason: format!("classification is {value}, it must lie in 1..={most}"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;

    use super::{Bounds, Decoded, Specs, read_parts};
    use crate::tensor::{DataType, TensorData, TensorSpec};

    fn decode_text(body: &[u8]) -> Result<Decoded, String> {
        decode_with(body, None)
    }

    fn decode_with(body: &[u8], json_len: Option<usize>) -> Result<Decoded, String> {
        let spec = |name: &str, data_type| TensorSpec {
            name: name.to_owned(),
            data_type,
            shape: vec![None],
        };
        let specs = Specs {
            inputs: vec![spec("text", DataType::Bytes)],
            outputs: vec![spec("embedding", DataType::F32)],
            num_labels: 3,
            bounds: Bounds { texts: 64, numbers: 64 },
        };
        let body = Bytes::copy_from_slice(body);
        read_parts(body, json_len, &specs.bounds)
            .and_then(|parts| Decoded::new(parts, &specs, Instant::now()))
            .map_err(|error| error.to_string())
    }

    const INPUT: &str = r#"{"name":"text","shape":[1],"datatype":"BYTES","data":["a"]}"#;

    #[test]
    fn a_request_is_decoded_and_unknown_keys_are_ignored() {
        let body = format!(
            r#"{{"id":"7","model":[1],"parameters":{{"explain":true}},"inputs":[{INPUT}],
            "outputs":[{{"name":"embedding","parameters":{{"binary_data":false}}}}]}}"#
        );
        let decoded = decode_text(body.as_bytes()).expect("valid");
        assert_eq!(decoded.id.as_deref(), Some("7"));
        assert_eq!(decoded.request.inputs[0].0, "text");
        assert!(decoded.explain);
    }

    #[test]
    fn raw_tensors_follow_the_json_whose_length_is_told() {
        let json = br#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES",
            "parameters":{"binary_data_size":5}}],"parameters":{"binary_data_output":true}}"#;
        let body = [&json[..], b"\x01\0\0\0a"].concat();
        let decoded = decode_with(&body, Some(json.len())).expect("valid");
        assert!(decoded.wanted.is_binary("embedding"));
        assert_eq!(decoded.request.inputs[0].1.data(), &TensorData::Bytes(vec![b"a".to_vec()]));
        for (json_len, reason) in [
            (Some(body.len() + 1), "must lie in 0..="),
            (Some(json.len() - 1), "line 2"),
            (Some(json.len() + 1), "trailing characters"),
            (None, "trailing characters"),
            (Some(0), "EOF"),
        ] {
            let error = decode_with(&body, json_len).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn an_output_says_for_itself_whether_it_is_raw() {
        for (all, one, binary) in [("true", "false", false), ("false", "true", true)] {
            let body = format!(
                r#"{{"inputs":[{INPUT}],"parameters":{{"binary_data_output":{all}}},
                "outputs":[{{"name":"embedding","parameters":{{"binary_data":{one}}}}}]}}"#
            );
            let wanted = decode_text(body.as_bytes()).expect("valid").wanted;
            assert_eq!(wanted.is_binary("embedding"), binary);
        }
    }

    #[test]
    fn only_the_outputs_named_go_back() {
        let body = |outputs: &str| format!(r#"{{"inputs":[{INPUT}],"outputs":[{outputs}]}}"#);
        let wanted = |outputs: &str| decode_text(body(outputs).as_bytes()).expect("valid").wanted;
        assert!(wanted("").has("embedding") && wanted("").has("another"));
        let named = wanted(r#"{"name":"embedding"}"#);
        assert!(named.has("embedding") && !named.has("another"));
    }

    #[test]
    fn classes_are_named_where_there_are_as_many() {
        let body = |count: &str| {
            format!(
                r#"{{"inputs":[{INPUT}],"outputs":[{{"name":"embedding",
                "parameters":{{"classification":{count}}}}}]}}"#
            )
        };
        let decoded = decode_text(body("2").as_bytes()).expect("valid");
        assert_eq!(decoded.classification, Some(2));
        for count in ["0", "4", "-1", "1.5", "\"2\""] {
            let error = decode_text(body(count).as_bytes()).expect_err(count);
            assert!(error.contains("must lie in 1..=3"), "{error}");
        }
    }

    #[test]
    fn malformed_bodies_are_refused_with_the_place() {
        let deep = "[".repeat(100_000);
        for (body, reason) in [
            ("", "line 1 column 0"),
            ("{", "line 1 column 1"),
            ("[]", "it is an array, but must be a JSON object with `inputs`"),
            (
                "{\"inputs\": [[\"text\", [1], \"BYTES\"]]}",
                "is an array, but must be an input object",
            ),
            ("{\"parameters\": {\"a\": 1, \"a\": 2}}", "duplicate field `a`"),
            ("{\"inputs\": [], \"inputs\": []}", "duplicate field `inputs`"),
            ("7", "it is an integer, but must be a JSON object with `inputs`"),
            ("{}", "missing field `inputs`"),
            ("{\"inputs\": 3}", "an array of tensors"),
            ("{\"inputs\": []} x", "trailing characters"),
            ("{\"inputs\": [], \"id\": 3}", "`id` is an integer, but must be a string"),
            ("{\"inputs\": [{\"name\": \"text\"}]}", "missing field `shape`"),
            ("{\"inputs\": [], \"outputs\": [{\"name\": \"x\"}]}", "it has `embedding`"),
            (&deep, "column"),
            (&format!("{{\"inputs\": {deep}"), "column"),
            (&format!("{{\"x\": {deep}"), "recursion limit exceeded at line 1"),
            (&format!("{{\"parameters\": {{\"x\": {deep}"), "recursion limit exceeded at line 1"),
            (&format!("{{\"inputs\": [{{\"data\": {deep}"), "deeper than 8"),
        ] {
            let error = decode_text(body.as_bytes()).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
        let error = decode_text(b"{\"inputs\": \"\xff\"}").expect_err("no UTF-8");
        assert!(error.contains("not UTF-8 after 12 bytes"), "{error}");
    }

    #[test]
    fn more_tensors_than_any_model_has_are_counted_but_not_kept() {
        let body = format!("{{\"inputs\":[{}{INPUT}]}}", format!("{INPUT},").repeat(9_999));
        let error = decode_text(body.as_bytes()).expect_err("too many");
        assert_eq!(error, "the number of inputs is 10000, over the limit of 64");
    }
}
