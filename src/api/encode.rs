//! The answer to an inference request, as JSON.

use serde::{Serialize, Serializer};

use super::{error::ApiError, models::Model};
use crate::{
    plan::QualitySource,
    serve::{InferResponse, PlanSummary, Report},
    tensor::{ByteSize, Tensor, TensorData},
};

/// What an answer says beside its output.
#[derive(Debug)]
pub(super) struct Heading {
    /// The family.
    pub(super) model_name: String,
    /// The version that was asked for.
    pub(super) model_version: String,
    /// The request's id.
    pub(super) id: Option<String>,
    /// Whether to tell more of how the answer came about.
    pub(super) explain: bool,
}

impl Heading {
    /// Returns the heading of an answer of `model`.
    pub(super) fn new(model: &Model, id: Option<String>, explain: bool) -> Self {
        Self {
            model_name: model.service.name().to_owned(),
            model_version: model.version.clone(),
            id,
            explain,
        }
    }
}

/// A plan and its cost, as every route writes it.
#[derive(Debug, Serialize)]
pub(super) struct WirePlan<'a> {
    plan: &'a str,
    predicted_latency_ms: f64,
    memory_mb: f64,
    quality: f64,
    quality_source: &'static str,
}

impl<'a> WirePlan<'a> {
    /// Converts the units to the wire's.
    pub(super) fn new(summary: &'a PlanSummary) -> Self {
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

#[derive(Debug, Serialize)]
struct WireResponse<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    parameters: WireReport<'a>,
    outputs: [WireOutput<'a>; 1],
}

#[derive(Debug, Serialize)]
struct WireReport<'a> {
    #[serde(flatten)]
    plan: WirePlan<'a>,
    latency_ms: f64,
    queue_ms: f64,
    #[serde(flatten)]
    explanation: Option<WireExplanation>,
}

/// What `explain` adds.
#[derive(Debug, Serialize)]
struct WireExplanation {
    batch: usize,
    tokens: usize,
    preprocess_ms: f64,
    compute_ms: f64,
}

#[derive(Debug, Serialize)]
struct WireOutput<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    data: WireData<'a>,
}

#[derive(Debug)]
struct WireData<'a>(&'a TensorData);

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

/// Writes the answer.
///
/// # Errors
///
/// Fails only where JSON cannot say what is there, which no answer holds.
pub(super) fn encode(heading: &Heading, response: &InferResponse) -> Result<Vec<u8>, ApiError> {
    let Report { plan, batch, tokens, latency, preprocess, queue, compute } = &response.report;
    let explanation = heading.explain.then_some(WireExplanation {
        batch: *batch,
        tokens: *tokens,
        preprocess_ms: preprocess.as_secs_f64() * 1e3,
        compute_ms: compute.as_secs_f64() * 1e3,
    });
    let parameters = WireReport {
        plan: WirePlan::new(plan),
        latency_ms: latency.as_secs_f64() * 1e3,
        queue_ms: queue.as_secs_f64() * 1e3,
        explanation,
    };
    let body = WireResponse {
        model_name: &heading.model_name,
        model_version: &heading.model_version,
        id: heading.id.as_deref(),
        parameters,
        outputs: [WireOutput::new(&response.output_name, &response.output)],
    };
    serde_json::to_vec(&body).map_err(|source| ApiError::Encode { source: Box::new(source) })
}

impl<'a> WireOutput<'a> {
    fn new(name: &'a str, tensor: &'a Tensor) -> Self {
        Self {
            name,
            shape: tensor.shape(),
            datatype: tensor.data_type().name(),
            data: WireData(tensor.data()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{Heading, encode};
    use crate::{
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
            latency: Duration::from_micros(5500),
            preprocess: Duration::from_micros(250),
            queue: Duration::from_micros(500),
            compute: Duration::from_millis(4),
        };
        let output = Tensor::new(vec![1, 2], data).expect("a tensor");
        InferResponse { output_name: "embedding".to_owned(), output, report }
    }

    fn encoded(id: Option<&str>, explain: bool, data: TensorData) -> Value {
        let heading = Heading {
            model_name: "text".to_owned(),
            model_version: "1".to_owned(),
            id: id.map(str::to_owned),
            explain,
        };
        let json = encode(&heading, &response(data)).expect("encoded");
        serde_json::from_slice(&json).expect("JSON")
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
}
