//! The answer to an inference request, as JSON with or without raw bytes behind it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{
    decode::RequestedOutputs,
    raw::{append_raw, raw_len},
};
use crate::{
    api::error::ApiError,
    plan::QualitySource,
    serve::{InferResponse, PlanSummary, Report, RoutedModule},
    tensor::{ByteSize, Tensor, TensorData},
};

/// Fields of an answer beside its outputs.
#[derive(Debug, Clone)]
pub(crate) struct AnswerHead {
    /// Name of the family.
    pub(crate) model_name: String,
    /// Version that the request asked for.
    pub(crate) model_version: String,
    /// Id of the request.
    pub(crate) id: Option<String>,
    /// Whether the answer explains how it came about.
    pub(crate) explain: bool,
}

/// A plan and its cost, as every route writes them.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Plan")]
pub(crate) struct WirePlan<'a> {
    plan: &'a str,
    predicted_latency_ms: f64,
    memory_mb: f64,
    quality: f64,
    quality_source: &'static str,
}

impl<'a> WirePlan<'a> {
    /// Converts `summary` to the units of the wire.
    pub(crate) fn new(summary: &'a PlanSummary) -> Self {
        Self {
            plan: &summary.plan,
            predicted_latency_ms: summary.predicted_latency.as_secs_f64() * 1e3,
            memory_mb: ByteSize(summary.memory_bytes).megabytes(),
            quality: summary.quality.value,
            quality_source: match summary.quality.source {
                QualitySource::Measured => "measured",
                QualitySource::Predicted => "predicted",
            },
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferResponse")]
pub(crate) struct WireResponse<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    parameters: WireReport<'a>,
    outputs: Vec<WireOutput<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Report")]
struct WireReport<'a> {
    #[serde(flatten)]
    plan: WirePlan<'a>,
    latency_ms: f64,
    queue_ms: f64,
    #[serde(flatten)]
    explanation: Option<WireExplanation>,
}

/// Fields that `explain` adds to an answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Explanation")]
struct WireExplanation {
    batch: usize,
    tokens: usize,
    preprocess_ms: f64,
    compute_ms: f64,
    /// Ways that tokens took, by module, as a JSON text; parameters cannot be objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    routing: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OutputTensor")]
struct WireOutput<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<OutputParameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<Value>")]
    data: Option<WireData<'a>>,
}

/// Parameters of an output whose elements follow the JSON.
#[derive(Debug, Serialize, JsonSchema)]
struct OutputParameters {
    binary_data_size: usize,
}

/// An answer's body.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// The JSON, and the raw bytes that the request asked for.
    pub(crate) body: Vec<u8>,
    /// Length of the JSON in bytes; `None` if it is the whole body.
    pub(crate) json_len: Option<usize>,
}

/// Elements of a tensor as an array.
#[derive(Debug)]
pub(crate) struct WireData<'a>(pub(crate) &'a TensorData);

impl Serialize for WireData<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            TensorData::I64(values) => values.serialize(serializer),
            TensorData::F32(values) => values.serialize(serializer),
            TensorData::Bytes(values) => {
                serializer.collect_seq(values.iter().map(|value| String::from_utf8_lossy(value)))
            }
        }
    }
}

/// Writes an answer; the elements of outputs that are raw in `wanted` follow the JSON.
///
/// # Errors
///
/// Fails only on values that JSON or raw bytes cannot express; no answer holds them.
pub(crate) fn encode(
    heading: &AnswerHead,
    response: &InferResponse,
    wanted: &RequestedOutputs,
) -> Result<Encoded, ApiError> {
    let outputs = response.outputs.iter().map(|(name, tensor)| {
        let raw_len = wanted.is_binary(name).then(|| raw_len(tensor.data()));
        WireOutput {
            name,
            shape: tensor.shape(),
            datatype: tensor.data_type().name(),
            parameters: raw_len.map(|binary_data_size| OutputParameters { binary_data_size }),
            data: raw_len.is_none().then_some(WireData(tensor.data())),
        }
    });
    let json = WireResponse {
        model_name: &heading.model_name,
        model_version: &heading.model_version,
        id: heading.id.as_deref(),
        parameters: WireReport::new(&response.report, heading.explain),
        outputs: outputs.collect(),
    };
    let mut body = serde_json::to_vec(&json).map_err(refused)?;
    let raw = || response.outputs.iter().filter(|(name, _)| wanted.is_binary(name));
    if raw().next().is_none() {
        return Ok(Encoded { body, json_len: None });
    }
    let json_len = Some(body.len());
    body.reserve_exact(raw().map(|(_, tensor)| raw_len(tensor.data())).sum());
    for (_, tensor) in raw() {
        append_raw(&mut body, tensor.data()).map_err(unwritable)?;
    }
    Ok(Encoded { body, json_len })
}

/// Returns an output's elements as raw bytes.
///
/// # Errors
///
/// Fails on an element longer than raw bytes can express; no answer holds one.
pub(crate) fn raw_bytes(tensor: &Tensor) -> Result<Vec<u8>, ApiError> {
    let mut raw = Vec::with_capacity(raw_len(tensor.data()));
    append_raw(&mut raw, tensor.data()).map_err(unwritable)?;
    Ok(raw)
}

fn unwritable(reason: String) -> ApiError {
    ApiError::Encode { source: reason.into() }
}

/// Returns the fields of `report` as parameters by name.
///
/// # Errors
///
/// Fails only on values that JSON cannot express; no report holds them.
pub(crate) fn report_parameters(
    report: &Report,
    explain: bool,
) -> Result<Map<String, Value>, ApiError> {
    match serde_json::to_value(WireReport::new(report, explain)) {
        Ok(Value::Object(parameters)) => Ok(parameters),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(refused(error)),
    }
}

fn refused(source: serde_json::Error) -> ApiError {
    ApiError::Encode { source: Box::new(source) }
}

impl<'a> WireReport<'a> {
    fn new(report: &'a Report, explain: bool) -> Self {
        let Report { plan, batch, tokens, latency, preprocess, queue, compute, routed, .. } =
            report;
        let explanation = explain.then_some(WireExplanation {
            batch: *batch,
            tokens: *tokens,
            preprocess_ms: preprocess.as_secs_f64() * 1e3,
            compute_ms: compute.as_secs_f64() * 1e3,
            routing: (!routed.is_empty()).then(|| routing(routed)),
        });
        Self {
            plan: WirePlan::new(plan),
            latency_ms: latency.as_secs_f64() * 1e3,
            queue_ms: queue.as_secs_f64() * 1e3,
            explanation,
        }
    }
}

/// Ways that tokens took in one module.
#[derive(Debug, Serialize)]
struct WireRouting<'a> {
    top_k: usize,
    tokens: u64,
    /// Number of tokens that took each way.
    taken: &'a [u64],
    /// Fraction of the ways that tokens did not take.
    skipped: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of one request stay far below 2^53")]
fn routing(routed: &[RoutedModule]) -> String {
    let modules = routed.iter().map(|RoutedModule { module, top_k, num_tokens, taken }| {
        let offered = num_tokens.saturating_mul(taken.len() as u64).max(1);
        let skipped = 1.0 - taken.iter().sum::<u64>() as f64 / offered as f64;
        (module, WireRouting { top_k: *top_k, tokens: *num_tokens, taken, skipped })
    });
    let modules: BTreeMap<_, _> = modules.collect();
    serde_json::to_string(&modules).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{AnswerHead, encode};
    use crate::{
        api::codec::decode::RequestedOutputs,
        plan::{Quality, QualitySource},
        serve::{InferResponse, PlanSummary, Report},
        tensor::{Tensor, TensorData},
    };

    fn response(data: TensorData) -> InferResponse {
        let plan = PlanSummary {
            plan: "l6[0..6]".to_owned(),
            predicted_latency: Duration::from_millis(4),
            memory_bytes: 90_500_000,
            quality: Quality { value: 0.75, source: QualitySource::Measured },
        };
        let report = Report {
            plan,
            batch: 1,
            tokens: 7,
            total_tokens: 7,
            latency: Duration::from_micros(5500),
            preprocess: Duration::from_micros(250),
            queue: Duration::from_micros(500),
            compute: Duration::from_millis(4),
            routed: Vec::new(),
        };
        let output = Tensor::new(vec![1, 2], data).expect("a tensor");
        InferResponse { outputs: vec![("embedding".to_owned(), output)], report }
    }

    fn encoded(id: Option<&str>, explain: bool, data: TensorData) -> Value {
        let heading = AnswerHead {
            model_name: "text".to_owned(),
            model_version: "1".to_owned(),
            id: id.map(str::to_owned),
            explain,
        };
        let encoded =
            encode(&heading, &response(data), &RequestedOutputs::default()).expect("encoded");
        assert_eq!(encoded.json_len, None);
        serde_json::from_slice(&encoded.body).expect("JSON")
    }

    #[test]
    fn an_answer_has_its_output_and_what_was_done() {
        let expected = json!({
            "model_name": "text", "model_version": "1", "id": "7",
            "parameters": {
                "plan": "l6[0..6]", "predicted_latency_ms": 4.0, "memory_mb": 90.5, "quality": 0.75,
                "quality_source": "measured", "latency_ms": 5.5, "queue_ms": 0.5,
            },
            "outputs": [
                {"name": "embedding", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -0.25]}
            ],
        });
        assert_eq!(encoded(Some("7"), false, TensorData::F32(vec![0.5, -0.25])), expected);
    }

    #[test]
    fn explanations_and_other_datatypes_are_written_too() {
        let answer = encoded(None, true, TensorData::Bytes(vec![b"a".to_vec(), b"\xff".to_vec()]));
        assert_eq!(answer["parameters"]["tokens"], 7);
        assert_eq!(answer["parameters"]["preprocess_ms"], 0.25);
        assert_eq!(answer["outputs"][0]["data"], json!(["a", "\u{fffd}"]));
        assert_eq!(answer.get("id"), None);
    }

    #[test]
    fn raw_outputs_follow_the_json() {
        let heading = AnswerHead {
            model_name: "text".to_owned(),
            model_version: "1".to_owned(),
            id: None,
            explain: false,
        };
        let response = response(TensorData::F32(vec![0.5, -0.25]));
        let encoded = encode(&heading, &response, &RequestedOutputs::raw()).expect("encoded");
        let (json, raw) = encoded.body.split_at(encoded.json_len.expect("raw bytes follow"));
        let json: Value = serde_json::from_slice(json).expect("JSON");
        let output = json!({"name": "embedding", "shape": [1, 2], "datatype": "FP32",
                            "parameters": {"binary_data_size": 8}});
        assert_eq!(json["outputs"][0], output);
        assert_eq!(raw, [0.5_f32.to_le_bytes(), (-0.25_f32).to_le_bytes()].concat());
    }
}
