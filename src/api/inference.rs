//! Inference as all protocols share it: from a request to an answer before it is written.

use std::{sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use serde::Deserialize;
use tracing::Span;

use super::{
    access::clients::Permit,
    codec::{
        body::{in_json_bytes, off_thread},
        bounds::Bounds,
        decode::{Decoded, RequestedOutputs},
        encode::AnswerHead,
        specs::Specs,
    },
    error::ApiError,
    path::InPath,
    state::Shared,
};
use crate::{
    serve::{FamilyService, FamilyState, InferRequest, InferResponse, Registry, Ticket},
    tensor::{Tensor, TensorData},
};

/// Version that every model has, whatever its content.
const VERSION: &str = "1";

/// Most bytes of JSON for an element of an output, roughly.
const MAX_ELEMENT_BYTES: usize = 16;

/// Returns the work of writing an output, in bytes of JSON.
pub(crate) fn output_bytes(output: &Tensor, binary: bool) -> usize {
    let num_elements = output.data().len();
    match binary {
        true => in_json_bytes(0, num_elements.saturating_mul(size_of::<f32>())),
        false => num_elements.saturating_mul(MAX_ELEMENT_BYTES),
    }
}

/// The model that a request names.
#[derive(Debug)]
pub(crate) struct Model {
    /// Service that answers requests to the model.
    pub(crate) service: Arc<FamilyService>,
    /// Version that the request names, or [`VERSION`].
    pub(crate) version: String,
}

#[derive(Debug, Deserialize)]
struct ModelPath {
    model: String,
    version: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for Model {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let InPath(path) = InPath::<ModelPath>::from_request_parts(parts, shared).await?;
        Self::find(shared.api.repository.registry(), &path.model, path.version)
    }
}

impl Model {
    /// Finds the model `name` in `version`, or in its current version if `version` is `None`.
    ///
    /// # Errors
    ///
    /// Fails if there is no such model or version, or if the model is not served.
    pub(crate) fn find(
        registry: &Registry,
        name: &str,
        version: Option<String>,
    ) -> Result<Self, ApiError> {
        let service = registry.family(name)?;
        Span::current().record("model", service.name());
        let version = version.unwrap_or_else(|| VERSION.to_owned());
        if version != VERSION && version != service.digest() {
            return Err(ApiError::UnknownVersion {
                model: name.to_owned(),
                version: version.chars().take(100).collect(),
                known: format!("`{VERSION}`, which is `{}`", service.digest()),
            });
        }
        Ok(Self { service, version })
    }

    /// Returns every model that is served.
    pub(crate) fn all(registry: &Registry) -> Vec<Self> {
        let ready = |(_, state)| match state {
            FamilyState::Ready(service) => Some(Self { service, version: VERSION.to_owned() }),
            FamilyState::Loading | FamilyState::Failed { .. } | FamilyState::Unloaded => None,
        };
        registry.families().into_iter().filter_map(ready).collect()
    }

    /// Returns the versions by which requests can name the model.
    pub(crate) fn versions(&self) -> [String; 2] {
        [VERSION.to_owned(), self.service.digest().to_owned()]
    }
}

/// A model's answer, before a protocol writes it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Fields of the answer beside its outputs.
    pub(crate) heading: AnswerHead,
    /// Outputs that the request asked for, and the report.
    pub(crate) response: InferResponse,
    /// Form of the outputs.
    pub(crate) wanted: RequestedOutputs,
}

impl Answer {
    /// Returns the work of writing the outputs, in bytes of JSON.
    pub(crate) fn num_bytes(&self) -> usize {
        let outputs = self.response.outputs.iter();
        outputs.map(|(name, tensor)| output_bytes(tensor, self.wanted.is_binary(name))).sum()
    }
}

/// A request as a protocol received it.
#[derive(Debug)]
pub(crate) struct Call {
    /// Rights of the client.
    pub(crate) permit: Permit,
    /// Latency budget of a request that has none of its own.
    pub(crate) wait: Option<Duration>,
    /// Work of decoding the request, in bytes of JSON.
    pub(crate) num_bytes: usize,
}

/// Answers a request that was counted and decoded, within its client's rights.
pub(crate) async fn run(
    model: &Model,
    ticket: Ticket,
    call: Call,
    decoded: Decoded,
) -> Result<Answer, ApiError> {
    let Call { permit, wait, .. } = call;
    let Decoded { mut request, id, explain, classification, wanted } = decoded;
    let InferRequest { budget, priority, .. } = &mut request;
    budget.latency = budget.latency.or(wait);
    permit.cap(budget, priority);
    let mut response = ticket.submit(request).await?.whole().await?;
    response.outputs.retain(|(name, _)| wanted.has(name));
    if let Some(count) = classification {
        response = classify(model, response, count).await?;
    }
    Span::current().record("plan", &response.report.plan.plan);
    let (model_name, model_version) = (model.service.name().to_owned(), model.version.clone());
    let heading = AnswerHead { model_name, model_version, id, explain };
    Ok(Answer { heading, response, wanted })
}

/// Replaces the scores of each row by the names of its `count` best classes.
async fn classify(
    model: &Model,
    mut response: InferResponse,
    count: usize,
) -> Result<InferResponse, ApiError> {
    let service = model.service.clone();
    let num_bytes = response.outputs.iter().map(|(_, scores)| output_bytes(scores, false)).sum();
    off_thread(num_bytes, move || {
        let output = &service.manifest().output;
        for (_, scores) in response.outputs.iter_mut().filter(|(name, _)| *name == output.name) {
            *scores = best_classes(scores, count, &output.labels);
        }
        Ok(response)
    })
    .await
}

/// Returns the `count` best classes of each row of `scores`. A class is written as in Triton:
/// `score:index:label`.
///
/// # Shapes
///
/// - scores: \[batch, classes\] f32
/// - returned: \[batch, count\] BYTES
fn best_classes(scores: &Tensor, count: usize, labels: &[String]) -> Tensor {
    let width = scores.shape().last().copied().unwrap_or(1).max(1);
    let rows = scores.floats().chunks(width);
    let mut named = Vec::new();
    for row in rows {
        let mut ranked: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        named.extend(ranked.into_iter().take(count).map(|(index, score)| {
            let label = labels.get(index).map_or("", String::as_str);
            format!("{score:.6}:{index}:{label}").into_bytes()
        }));
    }
    let shape = vec![named.len() / count.max(1), count];
    Tensor::new(shape, TensorData::Bytes(named)).expect("every row has as many classes")
}

/// Returns the ticket with the decoded request. Ends the ticket of one that is refused.
pub(crate) fn accept<T>(
    ticket: Ticket,
    decoded: Result<T, ApiError>,
) -> Result<(Ticket, T), ApiError> {
    match decoded {
        Ok(decoded) => Ok((ticket, decoded)),
        Err(error) => {
            ticket.refuse(error.code());
            Err(error)
        }
    }
}

impl Model {
    /// Returns the tensors and bounds of the model.
    pub(crate) fn specs(&self) -> Specs {
        Specs {
            inputs: self.service.input_specs(),
            outputs: self.service.output_specs(),
            num_labels: self.service.manifest().output.labels.len(),
            bounds: Bounds::of(self.service.manifest()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_classes_come_first() {
        let scores = TensorData::F32(vec![0.5, 2.0, -1.0, 3.0, 0.0, 3.0]);
        let scores = Tensor::new(vec![2, 3], scores).expect("a tensor");
        let labels = ["cat", "dog", "cow"].map(str::to_owned);
        let named = best_classes(&scores, 2, &labels);
        assert_eq!(named.shape(), [2, 2]);
        let expected = ["2.000000:1:dog", "0.500000:0:cat", "3.000000:0:cat", "3.000000:2:cow"];
        let expected = expected.iter().map(|text| text.as_bytes().to_vec()).collect();
        assert_eq!(named.data(), &TensorData::Bytes(expected));
    }
}
