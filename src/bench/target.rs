//! The server under load, as its clients see it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::BenchError;

/// Triton's header with the length of the JSON, after which raw tensors begin.
const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

/// Texts of requests to a family that reads texts.
const TEXTS: [&str; 4] = [
    "The quarterly figures are attached; please have a look before our meeting on Thursday.",
    "Does anybody know how to mount a network share at boot time without a password prompt?",
    "A free holiday is waiting for you, just answer this message within the next two days!",
    "I have moved the build to the new machine, and all tests pass again.",
];

/// A family of a server.
#[derive(Debug, Clone)]
pub struct Target {
    client: Client,
    url: String,
}

/// A request, ready to be sent.
#[derive(Debug, Clone)]
pub struct Message {
    body: Bytes,
    head_len: usize,
}

/// A plan of the family's front.
#[derive(Debug, Clone, Deserialize)]
pub struct FrontPlan {
    /// Id of the plan.
    pub plan: String,
    /// Predicted latency in milliseconds.
    pub predicted_latency_ms: f64,
    /// Quality of the plan.
    pub quality: f64,
}

/// Outcome of a request.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// HTTP status; `None` without an answer.
    pub(super) status: Option<u16>,
    /// Time of the request by the client's clock.
    pub(super) time: Duration,
    /// Time of the request by the server's clock; `None` without a valid answer.
    pub(super) server_time: Option<Duration>,
    /// Quality of the plan; `None` without a valid answer.
    pub(super) quality: Option<f64>,
    /// Ratio of the predicted time to the server's time; excludes time in the queue.
    pub(super) prediction: Option<f64>,
}

#[derive(Deserialize)]
struct Front {
    plans: Vec<FrontPlan>,
}

#[derive(Deserialize)]
struct Reply {
    parameters: ReplyParameters,
}

#[derive(Deserialize)]
struct ReplyParameters {
    latency_ms: f64,
    queue_ms: f64,
    predicted_latency_ms: f64,
    quality: f64,
}

impl ReplyParameters {
    /// Returns the ratio of the predicted time to the measured one, or `None` if the latter is not
    /// positive.
    fn prediction(&self) -> Option<f64> {
        let measured = self.latency_ms - self.queue_ms;
        (measured > 0.0).then(|| self.predicted_latency_ms / measured)
    }
}

impl Target {
    /// Creates a target for `family` of the server at `url`.
    ///
    /// # Errors
    ///
    /// Fails when no client can be created.
    pub fn new(url: &str, family: &str) -> Result<Self, BenchError> {
        let url = format!("{}/v2/models/{family}", url.trim_end_matches('/'));
        let client = Client::builder().no_proxy().tcp_nodelay(true).build();
        let client =
            client.map_err(|source| BenchError::Unreachable { url: url.clone(), source })?;
        Ok(Self { client, url })
    }

    /// Returns the family's front, cheapest first.
    ///
    /// # Errors
    ///
    /// Fails when the server does not return the front.
    pub async fn front(&self) -> Result<Vec<FrontPlan>, BenchError> {
        Ok(self.get::<Front>(&format!("{}/plans", self.url)).await?.plans)
    }

    /// Creates inputs of one text or image. Returns the JSON of the inputs and the raw tensors that
    /// follow it.
    ///
    /// # Errors
    ///
    /// Fails when the family reads other inputs.
    pub async fn inputs(&self) -> Result<(Value, Bytes), BenchError> {
        let metadata: Value = self.get(&self.url).await?;
        let inputs = metadata["inputs"].as_array().cloned().unwrap_or_default();
        let find = |name: &str| inputs.iter().find(|input| input["name"] == name);
        if let Some(pixels) = find("pixel_values") {
            let extents = pixels["shape"].as_array().cloned().unwrap_or_default();
            let mut shape: Vec<u64> = extents.iter().filter_map(Value::as_u64).collect();
            let count: u64 = shape.iter().product();
            shape.insert(0, 1);
            let mut random = StdRng::seed_from_u64(1);
            let values = (0..count).flat_map(|_| random.random_range(-1.0_f32..1.0).to_le_bytes());
            let raw: Bytes = values.collect();
            let parameters = json!({"binary_data_size": raw.len()});
            let (name, datatype) = ("pixel_values", "FP32");
            let input = json!({
                "name": name, "datatype": datatype, "shape": shape, "parameters": parameters,
            });
            return Ok((json!([input]), raw));
        }
        if find("text").is_some() {
            let (name, datatype) = ("text", "BYTES");
            let input =
                json!({"name": name, "datatype": datatype, "shape": [1], "data": [TEXTS[0]]});
            return Ok((json!([input]), Bytes::new()));
        }
        let family = metadata["name"].as_str().unwrap_or_default().to_owned();
        Err(BenchError::UnknownInput { family })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, BenchError> {
        let wrap = |source| BenchError::Unreachable { url: url.to_owned(), source };
        let response = self.client.get(url).send().await.map_err(wrap)?;
        let status = response.status().as_u16();
        let body = response.text().await.map_err(wrap)?;
        let refused = || BenchError::Refused { url: url.to_owned(), status, body: body.clone() };
        if status != 200 {
            return Err(refused());
        }
        serde_json::from_str(&body).map_err(|_| refused())
    }

    /// Sends a request. The time in the answer counts from `since`.
    pub(super) async fn ask(&self, message: &Message, since: Instant) -> Answer {
        let url = format!("{}/infer", self.url);
        let request = self.client.post(url).header(HEADER_LENGTH, message.head_len);
        let lost = || Answer {
            status: None,
            time: since.elapsed(),
            server_time: None,
            quality: None,
            prediction: None,
        };
        let Ok(response) = request.body(message.body.clone()).send().await else {
            return lost();
        };
        let status = response.status().as_u16();
        let Ok(body) = response.bytes().await else {
            return lost();
        };
        let time = since.elapsed();
        let reply = match status {
            200 => serde_json::from_slice::<Reply>(&body).ok(),
            _ => None,
        };
        let parameters = reply.map(|reply| reply.parameters);
        let milliseconds = parameters.as_ref().map(|parameters| parameters.latency_ms);
        let server_time = milliseconds.map(|time| Duration::from_secs_f64(time.max(0.0) / 1e3));
        let prediction = parameters.as_ref().and_then(ReplyParameters::prediction);
        let quality = parameters.map(|parameters| parameters.quality);
        Answer { status: Some(status), time, server_time, quality, prediction }
    }
}

impl Message {
    /// Creates a request from inputs and budget parameters.
    pub fn new(inputs: &Value, raw: &Bytes, parameters: &Value) -> Self {
        let head = json!({"inputs": inputs, "parameters": parameters}).to_string();
        let body = [head.as_bytes(), raw].concat().into();
        Self { body, head_len: head.len() }
    }
}
