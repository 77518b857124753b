//! `POST /v1/embeddings` and `GET /v1/models`, in the form that the `openai` clients know.
//!
//! Budgets are further keys of the body, with the names of the protocol's parameters.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use tracing::{Instrument, debug_span};

use super::infer::server_timing;
use crate::{
    api::{
        access::clients::Permit,
        codec::{
            body::{Body, off_thread, parse_json},
            bounded::or_default,
            bounds::{Bounds, check},
            encode::report_parameters,
            parameters::{Parameters, ParametersSchema},
            raw::flatten,
        },
        error::ApiError,
        inference::{Model, accept, output_bytes},
        path::InPath,
        state::Shared,
    },
    family::Limits,
    serve::{InferRequest, InferResponse, ServeError},
    tensor::{Tensor, TensorData},
};

/// Task of the families that these routes serve.
const TASK: &str = "sentence-embedding";

/// A request for embeddings.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingsRequest")]
#[serde(expecting = "a JSON object with `model` and `input`")]
pub(crate) struct Question {
    model: String,
    input: Input,
    #[serde(default, deserialize_with = "or_default")]
    encoding_format: Encoding,
    dimensions: Option<usize>,
    /// Id of the user, for accounting; it has no effect here.
    #[serde(rename = "user")]
    _user: Option<String>,
    /// Budgets; any other key is refused by name.
    #[serde(flatten)]
    #[schemars(with = "ParametersSchema")]
    parameters: Map<String, Value>,
}

/// One text, several texts, the tokens of one text, or the tokens of several.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "EmbeddingsInput")]
#[serde(
    untagged,
    expecting = "must be a string, or an array of strings, integers or arrays of integers"
)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<i64>),
    Several(Vec<Vec<i64>>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

/// Embeddings of the texts of a request.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EmbeddingsResponse")]
pub(crate) struct Answer<'a> {
    object: &'static str,
    data: Vec<Embedding<'a>>,
    model: &'a str,
    usage: Usage,
    /// Report of how the request was answered.
    tessera: Map<String, Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Embedding<'a> {
    object: &'static str,
    index: usize,
    #[schemars(with = "NumbersSchema")]
    embedding: Numbers<'a>,
}

/// Numbers of an embedding, or their little-endian bytes in base64.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Numbers")]
#[expect(dead_code, reason = "it is a description")]
enum NumbersSchema {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Debug)]
struct Numbers<'a> {
    values: &'a [f32],
    encoding: Encoding,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// A model in the list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub(crate) struct Listed {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

/// Models with embeddings, and those that generate text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ModelList")]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Listed>,
}

/// Lists the models with embeddings, and those that generate text.
pub(crate) async fn models(State(shared): State<Arc<Shared>>) -> Json<List> {
    let models = Model::all(shared.api.repository.registry()).into_iter();
    let is_listed = |model: &Model| has_embeddings(model) || model.service.language().is_some();
    let data = models.filter(is_listed).map(|model| Listed::new(&model)).collect();
    Json(List { object: "list", data })
}

/// Returns the model `name`.
pub(crate) async fn model(
    State(shared): State<Arc<Shared>>,
    InPath(name): InPath<String>,
) -> Result<Json<Listed>, ApiError> {
    let model = Model::find(shared.api.repository.registry(), &name, None)?;
    Ok(Json(Listed::new(&model)))
}

/// Answers a request for embeddings within its budget.
pub(crate) async fn embeddings(
    State(shared): State<Arc<Shared>>,
    Extension(permit): Extension<Permit>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let bounds = bounds(&shared);
    let question: Question = off_thread(body.len(), move || parse_json(&body, &bounds))
        .instrument(debug_span!("decode"))
        .await?;
    let model = Model::find(shared.api.repository.registry(), &question.model, None)?;
    let (ticket, asked) = accept(model.service.arrive(), Asked::new(&model, question))?;
    let Asked { inputs, parameters, form } = asked;
    let Parameters { mut budget, prompt_name, mut priority, explain, .. } = parameters;
    permit.cap(&mut budget, &mut priority);
    let request = InferRequest { inputs, prompt_name, budget, priority, arrival };
    let response = ticket.submit(request).await?.whole().await?;
    let num_bytes = response.outputs.iter().map(|(_, tensor)| output_bytes(tensor, false)).sum();
    let report = response.report.clone();
    let body =
        off_thread(num_bytes, move || write(model.service.name(), &response, &form, explain))
            .instrument(debug_span!("encode"))
            .await?;
    let timing = server_timing(&report, arrival.elapsed());
    let headers = [("content-type", "application/json".to_owned()), ("server-timing", timing)];
    Ok((headers, body).into_response())
}

/// Returns bounds within which every model with embeddings finds its requests. A body is counted
/// before its model is known.
fn bounds(shared: &Shared) -> Bounds {
    let models = Model::all(shared.api.repository.registry()).into_iter().filter(has_embeddings);
    models
        .fold(Bounds::NO_TENSORS, |widest, model| widest.max(Bounds::of(model.service.manifest())))
}

/// A request for embeddings that was checked.
#[derive(Debug)]
struct Asked {
    inputs: Vec<(String, Tensor)>,
    parameters: Parameters,
    form: Form,
}

/// Form of the embeddings in an answer.
#[derive(Debug)]
struct Form {
    encoding: Encoding,
    /// Number of leading values that are kept; `None` keeps all.
    dimensions: Option<usize>,
}

impl Asked {
    fn new(model: &Model, question: Question) -> Result<Self, ApiError> {
        if !has_embeddings(model) {
            return Err(ApiError::Parameter {
                name: "model".to_owned(),
                found: format!("`{}`, which does {}", question.model, task(model)),
                expected: "one that /v1/models lists",
            });
        }
        let width = model.service.manifest().output.width;
        if let Some(found) = question.dimensions.filter(|count| !(1..=width).contains(count)) {
            let reason = format!("it is {found}, it must lie in 1..={width}");
            return Err(ServeError::Input { name: "dimensions".to_owned(), reason }.into());
        }
        let form = Form { encoding: question.encoding_format, dimensions: question.dimensions };
        let parameters = Parameters::parse(question.parameters)?;
        let inputs = question.input.into_tensors(&model.service.manifest().limits)?;
        Ok(Self { inputs, parameters, form })
    }
}

impl Input {
    fn into_tensors(self, limits: &Limits) -> Result<Vec<(String, Tensor)>, ServeError> {
        match self {
            Self::Text(text) => text_tensor(vec![text]),
            Self::Texts(texts) => text_tensor(texts),
            Self::Tokens(tokens) => token_tensors(&[tokens], limits),
            Self::Several(rows) => token_tensors(&rows, limits),
        }
    }
}

fn text_tensor(texts: Vec<String>) -> Result<Vec<(String, Tensor)>, ServeError> {
    let shape = vec![texts.len()];
    let data = TensorData::Bytes(texts.into_iter().map(String::into_bytes).collect());
    Ok(vec![("text".to_owned(), build(shape, data)?)])
}

/// Pads rows of token ids to the longest one, after checking their number and lengths against
/// `limits`. Returns the ids and the mask.
fn token_tensors(rows: &[Vec<i64>], limits: &Limits) -> Result<Vec<(String, Tensor)>, ServeError> {
    if rows.iter().any(Vec::is_empty) {
        return Err(refuse("a list of tokens is empty".to_owned()));
    }
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    check("the batch", rows.len(), limits.max_batch)?;
    check("the number of tokens", width, limits.max_tokens)?;
    let padded = |row: &Vec<i64>, value: fn(i64) -> i64| {
        let tokens = row.iter().copied().map(value);
        tokens.chain(std::iter::repeat(0)).take(width).collect::<Vec<i64>>()
    };
    let tensor = |value: fn(i64) -> i64| {
        let values = rows.iter().flat_map(|row| padded(row, value)).collect();
        build(vec![rows.len(), width], TensorData::I64(values))
    };
    let (ids, mask) = (tensor(|id| id)?, tensor(|_| 1)?);
    Ok(vec![("input_ids".to_owned(), ids), ("attention_mask".to_owned(), mask)])
}

fn build(shape: Vec<usize>, data: TensorData) -> Result<Tensor, ServeError> {
    Tensor::new(shape, data).map_err(|error| refuse(error.to_string()))
}

fn refuse(reason: String) -> ServeError {
    ServeError::Input { name: "input".to_owned(), reason }
}

fn task(model: &Model) -> &str {
    &model.service.manifest().task
}

fn has_embeddings(model: &Model) -> bool {
    task(model) == TASK && !model.service.manifest().output.per_token
}

impl Listed {
    fn new(model: &Model) -> Self {
        let id = model.service.name().to_owned();
        Self { id, object: "model", created: 0, owned_by: env!("CARGO_PKG_NAME") }
    }
}

/// Writes the answer as JSON.
fn write(
    model: &str,
    response: &InferResponse,
    form: &Form,
    explain: bool,
) -> Result<Vec<u8>, ApiError> {
    let output = response.outputs.first().map(|(_, tensor)| tensor);
    let width = output.and_then(|output| output.shape().last().copied()).unwrap_or(1).max(1);
    let rows: Vec<Vec<f32>> = output
        .and_then(Tensor::as_f32)
        .unwrap_or_default()
        .chunks(width)
        .map(|row| form.dimensions.map_or_else(|| row.to_vec(), |kept| shortened(row, kept)))
        .collect();
    let data = rows.iter().enumerate().map(|(index, values)| Embedding {
        object: "embedding",
        index,
        embedding: Numbers { values, encoding: form.encoding },
    });
    let count = response.report.total_tokens;
    let answer = Answer {
        object: "list",
        data: data.collect(),
        model,
        usage: Usage { prompt_tokens: count, total_tokens: count },
        tessera: report_parameters(&response.report, explain)?,
    };
    serde_json::to_vec(&answer).map_err(|source| ApiError::Encode { source: Box::new(source) })
}

/// Returns the first `kept` values, scaled to a vector of length 1.
fn shortened(row: &[f32], kept: usize) -> Vec<f32> {
    let row = &row[..kept.min(row.len())];
    let length = row.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    row.iter().map(|value| value / length).collect()
}

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.encoding {
            Encoding::Float => self.values.serialize(serializer),
            Encoding::Base64 => {
                let mut raw = Vec::new();
                flatten(&mut raw, self.values, |value| value.to_le_bytes());
                serializer.serialize_str(&BASE64_STANDARD.encode(raw))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits() -> Limits {
        Limits { max_tokens: 4, max_batch: 2, ..Limits::default() }
    }

    #[test]
    fn inputs_come_in_four_forms() {
        for (input, names) in [
            (json!("a"), vec!["text"]),
            (json!(["a", "b"]), vec!["text"]),
            (json!([1, 2]), vec!["input_ids", "attention_mask"]),
            (json!([[1, 2], [3]]), vec!["input_ids", "attention_mask"]),
        ] {
            let input: Input = serde_json::from_value(input).expect("an input");
            let tensors = input.into_tensors(&limits()).expect("tensors");
            assert_eq!(tensors.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
        }
        let rows = token_tensors(&[vec![1, 2], vec![3]], &limits()).expect("tensors");
        assert_eq!(rows[0].1.as_i64(), Some(&[1, 2, 3, 0][..]));
        assert_eq!(rows[1].1.as_i64(), Some(&[1, 1, 1, 0][..]));
        assert!(token_tensors(&[vec![1], vec![]], &limits()).is_err());
        for input in [json!(1), json!([1.5]), json!([["a"]]), json!({}), json!(null)] {
            assert!(serde_json::from_value::<Input>(input.clone()).is_err(), "{input}");
        }
    }

    #[test]
    fn rows_of_tokens_are_bounded_before_they_are_padded() {
        let mut many = vec![vec![1]; 1 << 16];
        // Padded to this length, all of them would take a terabyte.
        many.push(vec![1; 1 << 20]);
        for (rows, reason) in [
            (many, "the batch is 65537, over the limit of 2"),
            (vec![vec![1; 1 << 20]], "the number of tokens is 1048576, over the limit of 4"),
        ] {
            let error = token_tensors(&rows, &limits()).expect_err(reason);
            assert_eq!(error.to_string(), reason);
        }
    }

    #[test]
    fn fields_that_are_null_count_as_absent() {
        let question = json!({"model": "m", "input": "a", "encoding_format": null,
                              "dimensions": null, "user": null});
        let question: Question = serde_json::from_value(question).expect("a question");
        assert_eq!((question.encoding_format, question.dimensions), (Encoding::Float, None));
        assert!(question.parameters.is_empty());
    }

    #[test]
    fn shortened_vectors_have_a_length_of_one() {
        assert_eq!(shortened(&[3.0, 4.0, 12.0], 2), [0.6, 0.8]);
        assert_eq!(shortened(&[0.0, 1.0], 1), [0.0]);
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        let numbers = Numbers { values: &[1.0, -2.0], encoding: Encoding::Base64 };
        assert_eq!(serde_json::to_value(&numbers).expect("JSON"), json!("AACAPwAAAMA="));
    }
}
