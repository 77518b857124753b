//! The body of an inference request, from JSON to what [`serve`](crate::serve) takes.

use std::{fmt, marker::PhantomData, time::Instant};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{
    body::parse_json,
    error::ApiError,
    inputs::{WireInput, names},
    parameters::Parameters,
};
use crate::{
    serve::{InferRequest, ServeError},
    tensor::TensorSpec,
};

/// The most inputs, and the most outputs, that a request may name.
const MAX_TENSORS: usize = 64;

/// A request, and what its answer must know of it.
#[derive(Debug)]
pub(super) struct Decoded {
    /// What the family is asked.
    pub(super) request: InferRequest,
    /// The id to send back.
    pub(super) id: Option<String>,
    /// Whether the answer tells more of how it came about.
    pub(super) explain: bool,
    /// How many of the best classes to name in place of all scores.
    pub(super) classification: Option<usize>,
}

/// The tensors of a model.
#[derive(Debug)]
pub(super) struct Specs {
    /// What it takes.
    pub(super) inputs: Vec<TensorSpec>,
    /// What it returns.
    pub(super) outputs: Vec<TensorSpec>,
    /// How many classes it has names for.
    pub(super) num_labels: usize,
}

/// Unknown keys are ignored, as the protocol demands; unknown parameters are not.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object with `inputs`")]
struct WireRequest {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Bounded<WireInput>,
    #[serde(default)]
    outputs: Bounded<WireOutput>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an output object")]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Decodes `body`, which arrived at `arrival`.
///
/// # Errors
///
/// Fails on a body that is no JSON of the protocol's form, and on names, types, shapes and
/// parameters that the model does not take.
pub(super) fn decode(body: &[u8], specs: &Specs, arrival: Instant) -> Result<Decoded, ApiError> {
    let WireRequest { id, parameters, inputs, outputs } = parse_json(body)?;
    let Parameters { budget, explain } = Parameters::parse(parameters)?;
    let mut classification = None;
    for output in outputs.checked("the number of outputs")? {
        classification = output.check(specs)?.or(classification);
    }
    let inputs = inputs.checked("the number of inputs")?.into_iter();
    let inputs = inputs.map(|input| input.into_tensor(&specs.inputs)).collect::<Result<_, _>>()?;
    let request = InferRequest { inputs, budget, arrival };
    Ok(Decoded { request, id, explain, classification })
}

impl WireOutput {
    /// Checks the output, and returns how many classes to name if it asks for that.
    fn check(&self, specs: &Specs) -> Result<Option<usize>, ApiError> {
        let Self { name, parameters } = self;
        if !specs.outputs.iter().any(|spec| spec.name == *name) {
            let known = names(&specs.outputs);
            return Err(ApiError::UnknownOutput { name: name.clone(), known });
        }
        let mut classification = None;
        for (parameter, value) in parameters {
            match parameter.as_str() {
                "classification" if specs.num_labels > 0 => {
                    let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
                    let count = count.filter(|count| (1..=specs.num_labels).contains(count));
                    classification = Some(count.ok_or_else(|| {
                        let most = specs.num_labels;
                        let reason =
                            format!("classification is {value}, it must lie in 1..={most}");
                        ServeError::Input { name: name.clone(), reason }
                    })?);
                }
                "binary_data" if *value == Value::Bool(false) => {}
                _ => {
                    let known = "binary_data = false, and classification where there are labels";
                    return Err(ApiError::UnknownParameter { name: parameter.clone(), known });
                }
            }
        }
        Ok(classification)
    }
}

/// An array of which no more than [`MAX_TENSORS`] elements are kept, so that it cannot eat memory.
#[derive(Debug)]
struct Bounded<T> {
    kept: Vec<T>,
    len: usize,
}

impl<T> Bounded<T> {
    fn checked(self, what: &str) -> Result<Vec<T>, ServeError> {
        if self.len > MAX_TENSORS {
            let (found, limit) = (self.len, MAX_TENSORS);
            return Err(ServeError::TooLarge { what: what.to_owned(), found, limit });
        }
        Ok(self.kept)
    }
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), len: 0 }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

struct BoundedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedVisitor<T> {
    type Value = Bounded<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Bounded<T>, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX_TENSORS {
            match sequence.next_element()? {
                Some(tensor) => kept.push(tensor),
                None => {
                    return Ok(Bounded { len: kept.len(), kept });
                }
            }
        }
        let mut len = kept.len();
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            len += 1;
        }
        Ok(Bounded { kept, len })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Decoded, Specs, decode};
    use crate::tensor::{DataType, TensorSpec};

    fn decode_text(body: &[u8]) -> Result<Decoded, String> {
        let spec = |name: &str, data_type| TensorSpec {
            name: name.to_owned(),
            data_type,
            shape: vec![None],
        };
        let specs = Specs {
            inputs: vec![spec("text", DataType::Bytes)],
            outputs: vec![spec("embedding", DataType::F32)],
            num_labels: 3,
        };
        decode(body, &specs, Instant::now()).map_err(|error| error.to_string())
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
            ("[]", "expected a JSON object with `inputs`"),
            ("7", "expected a JSON object with `inputs`"),
            ("{}", "missing field `inputs`"),
            ("{\"inputs\": 3}", "an array of tensors"),
            ("{\"inputs\": []} x", "trailing characters"),
            ("{\"inputs\": [], \"id\": 3}", "expected a string"),
            ("{\"inputs\": [{\"name\": \"text\"}]}", "missing field `shape`"),
            ("{\"inputs\": [], \"outputs\": [{\"name\": \"x\"}]}", "it has `embedding`"),
            (&deep, "column"),
            (&format!("{{\"inputs\": {deep}"), "column"),
            (&format!("{{\"x\": {deep}"), "EOF"),
            (&format!("{{\"parameters\": {{\"x\": {deep}"), "recursion limit"),
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
