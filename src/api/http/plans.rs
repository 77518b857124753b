//! Plans without running them: a model's Pareto front, and the plan for a budget.

use axum::{
    extract::RawQuery,
    http::header,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    api::{
        codec::{
            body::{Body, read_or_default},
            bounded,
            encode::WirePlan,
            parameters::{Parameters, ParametersSchema},
        },
        error::ApiError,
        inference::Model,
    },
    plan::Shape,
    serve::{FamilyService, ServeError},
};

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Front")]
pub(crate) struct WireFront<'a> {
    model: &'a str,
    batch: usize,
    tokens: usize,
    metric: &'a str,
    plans: Vec<WirePlan<'a>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "PlanRequest")]
#[serde(expecting = "a JSON object")]
pub(crate) struct WireQuestion {
    batch: Option<usize>,
    tokens: Option<usize>,
    #[serde(default, deserialize_with = "bounded::parameters")]
    #[schemars(with = "ParametersSchema")]
    parameters: Map<String, Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Choice")]
pub(crate) struct WireChoice<'a> {
    model: &'a str,
    batch: usize,
    tokens: usize,
    metric: &'a str,
    #[serde(flatten)]
    plan: WirePlan<'a>,
}

/// Lists the plans of the Pareto front at a shape, cheapest first.
pub(crate) async fn front(model: Model, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let shape = parse_query(query.as_deref().unwrap_or_default(), default_shape(&model))?;
    check(shape, &model.service)?;
    let front = model.service.front(shape);
    let body = WireFront {
        model: model.service.name(),
        batch: shape.batch,
        tokens: shape.tokens,
        metric: model.service.manifest().quality.metric.name(),
        plans: front.iter().map(WirePlan::new).collect(),
    };
    to_json(&body)
}

/// Returns the plan that a budget gets at a shape; an empty body asks without a budget.
pub(crate) async fn choose(model: Model, Body(body): Body) -> Result<Response, ApiError> {
    let question: WireQuestion = read_or_default(body).await?;
    let default = default_shape(&model);
    let shape = Shape {
        batch: question.batch.unwrap_or(default.batch),
        tokens: question.tokens.unwrap_or(default.tokens),
    };
    check(shape, &model.service)?;
    let Parameters { budget, .. } = Parameters::parse(question.parameters)?;
    let summary = model.service.choose(shape, &budget)?;
    let body = WireChoice {
        model: model.service.name(),
        batch: shape.batch,
        tokens: shape.tokens,
        metric: model.service.manifest().quality.metric.name(),
        plan: WirePlan::new(&summary),
    };
    to_json(&body)
}

fn to_json(body: &impl Serialize) -> Result<Response, ApiError> {
    let json =
        serde_json::to_vec(body).map_err(|source| ApiError::Encode { source: Box::new(source) })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// Returns the shape of a question that names none: the usual one, within the model's limits.
fn default_shape(model: &Model) -> Shape {
    let most = model.service.manifest().limits.max_tokens;
    Shape { tokens: Shape::DEFAULT.tokens.min(most), ..Shape::DEFAULT }
}

/// Returns the shape that a query names; what it does not name is that of `default`.
///
/// # Errors
///
/// Fails on unknown names, and on values that are not numbers.
pub(crate) fn parse_query(query: &str, default: Shape) -> Result<Shape, ApiError> {
    let mut shape = default;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let slot = match &*name {
            "batch" => &mut shape.batch,
            "tokens" => &mut shape.tokens,
            _ => {
                let name = name.into_owned();
                return Err(ApiError::UnknownParameter { name, known: "batch, tokens".into() });
            }
        };
        *slot = value.parse().map_err(|_| ApiError::Parameter {
            name: name.into_owned(),
            found: format!("`{value}`"),
            expected: "an integer from 1 on",
        })?;
    }
    Ok(shape)
}

/// Checks that `shape` is within the family's limits.
fn check(shape: Shape, service: &FamilyService) -> Result<(), ApiError> {
    let limits = &service.manifest().limits;
    for (name, found, limit) in
        [("batch", shape.batch, limits.max_batch), ("tokens", shape.tokens, limits.max_tokens)]
    {
        if found == 0 {
            return Err(ApiError::Parameter {
                name: name.to_owned(),
                found: "0".to_owned(),
                expected: "an integer from 1 on",
            });
        }
        if found > limit {
            return Err(ServeError::TooLarge { what: name.to_owned(), found, limit }.into());
        }
    }
    Ok(())
}
