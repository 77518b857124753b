//! Inference as all protocols share it: from a decoded request to an answer before it is written.

use tracing::Span;

use super::{
    codec::{
        body::{in_json_bytes, off_thread},
        bounds::Bounds,
        classes::best_classes,
        decode::{Decoded, RequestedOutputs},
        encode::AnswerHead,
        specs::Specs,
    },
    error::ApiError,
    http::models::Model,
};
use crate::{
    serve::{InferResponse, Ticket},
    tensor::Tensor,
};

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

/// Answers a decoded request.
pub(crate) async fn answer(
    model: &Model,
    ticket: Ticket,
    decoded: Decoded,
) -> Result<Answer, ApiError> {
    let Decoded { request, id, explain, classification, wanted } = decoded;
    let mut response = ticket.submit(request).await?.whole().await?;
    response.outputs.retain(|(name, _)| wanted.has(name));
    if let Some(count) = classification {
        response = classify(model, response, count).await?;
    }
    Span::current().record("plan", &response.report.plan.plan);
    Ok(Answer { heading: AnswerHead::new(model, id, explain), response, wanted })
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
