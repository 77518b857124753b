//! The server under load, as its clients see it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::{Client, RequestBuilder};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::BenchError;
use crate::plan::oracle::{Choice, Costs};

/// Triton's header with the length of the JSON, after which raw tensors begin.
const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

/// Sentences of requests to a family that reads texts.
const TEXTS: [&str; 4] = [
    "The quarterly figures are attached; please have a look before our meeting on Thursday.",
    "Does anybody know how to mount a network share at boot time without a password prompt?",
    "A free holiday is waiting for you, just answer this message within the next two days!",
    "I have moved the build to the new machine, and all tests pass again.",
];

/// Number of texts whose lengths stand for a heavy-tailed distribution.
const NUM_LENGTHS: u32 = 16;

/// Index of the Pareto distribution of lengths: few texts have most of the words.
const TAIL: f64 = 1.2;

/// Words of the shortest text of that distribution, and of the longest one.
const WORDS: (f64, f64) = (8.0, 200.0);

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

/// Inputs of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Inputs as JSON.
    pub inputs: Value,
    /// Raw tensors that follow the JSON.
    pub raw: Bytes,
    /// Length in tokens; 1 for an image.
    pub tokens: usize,
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
struct Explained {
    parameters: Explanation,
}

#[derive(Deserialize)]
struct Explanation {
    tokens: usize,
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

impl From<&FrontPlan> for Choice {
    fn from(plan: &FrontPlan) -> Self {
        let time = Duration::try_from_secs_f64(plan.predicted_latency_ms / 1e3);
        Self { time: time.unwrap_or(Duration::MAX), quality: plan.quality }
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

    /// Returns the front of batches of up to `most` rows for each of `tokens`, which ascend, as the
    /// server predicts it now. Includes no batch that the family refuses.
    ///
    /// # Errors
    ///
    /// Fails when the server does not return the front of one row.
    pub async fn costs(&self, tokens: &[usize], most: usize) -> Result<Costs, BenchError> {
        let mut choices = Vec::new();
        for tokens in tokens {
            let mut rows = Vec::new();
            for batch in 1..=most {
                let url = format!("{}/plans?batch={batch}&tokens={tokens}", self.url);
                match self.get::<Front>(&url).await {
                    Ok(Front { plans }) => rows.push(plans.iter().map(Choice::from).collect()),
                    Err(error) if batch == 1 => return Err(error),
                    Err(_) => break,
                }
            }
            choices.push(rows);
        }
        Ok(Costs { tokens: tokens.to_vec(), choices })
    }

    /// Creates inputs of one text or image: a usual one, or texts of `heavy_tailed` lengths.
    ///
    /// # Errors
    ///
    /// Fails when the family reads other inputs, and when the server does not answer them.
    pub async fn samples(&self, heavy_tailed: bool) -> Result<Vec<Sample>, BenchError> {
        let metadata: Value = self.get(&self.url).await?;
        let inputs = metadata["inputs"].as_array().cloned().unwrap_or_default();
        let find = |name: &str| inputs.iter().find(|input| input["name"] == name);
        if let Some(pixels) = find("pixel_values") {
            return Ok(vec![image(pixels)]);
        }
        if find("text").is_none() {
            let family = metadata["name"].as_str().unwrap_or_default().to_owned();
            return Err(BenchError::UnknownInput { family });
        }
        let texts = if heavy_tailed { texts() } else { vec![TEXTS[0].to_owned()] };
        let mut samples = Vec::new();
        for text in texts {
            let input = json!({"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]});
            let inputs = json!([input]);
            let tokens = self.count(&inputs).await?;
            samples.push(Sample { inputs, raw: Bytes::new(), tokens });
        }
        Ok(samples)
    }

    /// Returns the number of tokens of one text.
    async fn count(&self, inputs: &Value) -> Result<usize, BenchError> {
        let url = format!("{}/infer", self.url);
        let body = json!({"inputs": inputs, "parameters": {"explain": true}});
        let request = self.client.post(&url).body(body.to_string());
        Ok(read::<Explained>(&url, request).await?.parameters.tokens)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, BenchError> {
        read(url, self.client.get(url)).await
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
    pub fn new(sample: &Sample, parameters: &Value) -> Self {
        let head = json!({"inputs": sample.inputs, "parameters": parameters}).to_string();
        let body = [head.as_bytes(), &sample.raw].concat().into();
        Self { body, head_len: head.len() }
    }
}

/// Sends `request` to `url` and reads its answer.
async fn read<T: DeserializeOwned>(url: &str, request: RequestBuilder) -> Result<T, BenchError> {
    let wrap = |source| BenchError::Unreachable { url: url.to_owned(), source };
    let response = request.send().await.map_err(wrap)?;
    let status = response.status().as_u16();
    let body = response.text().await.map_err(wrap)?;
    let refused = || BenchError::Refused { url: url.to_owned(), status, body: body.clone() };
    if status != 200 {
        return Err(refused());
    }
    serde_json::from_str(&body).map_err(|_| refused())
}

/// Creates an image of noise for the input that `pixels` describes.
fn image(pixels: &Value) -> Sample {
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
    Sample { inputs: json!([input]), raw, tokens: 1 }
}

/// Returns texts whose lengths are spread evenly over the probabilities of a Pareto distribution,
/// long ones between short ones.
fn texts() -> Vec<String> {
    let words: Vec<&str> = TEXTS.iter().flat_map(|text| text.split(' ')).collect();
    let (shortest, longest) = WORDS;
    let text = |index: u32| {
        let above = 1.0 - (f64::from(index * 7 % NUM_LENGTHS) + 0.5) / f64::from(NUM_LENGTHS);
        let count = (shortest / above.powf(1.0 / TAIL)).min(longest);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "8 to 200")]
        let count = count as usize;
        words.iter().cycle().take(count).copied().collect::<Vec<&str>>().join(" ")
    };
    (0..NUM_LENGTHS).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_texts_have_most_of_the_words() {
        let mut counts: Vec<usize> = texts().iter().map(|text| text.split(' ').count()).collect();
        counts.sort_unstable();
        let (all, longest): (usize, usize) = (counts.iter().sum(), counts[13..].iter().sum());
        assert_eq!((counts[0], counts[8]), (8, 15));
        assert!(counts[15] > 8 * counts[8] && longest * 2 > all, "{counts:?}");
    }
}
