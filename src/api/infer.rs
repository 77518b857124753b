//! `POST /v2/models/{model}/infer`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use tracing::Span;

use super::{
    Shared,
    body::{Body, off_thread},
    classes::best_classes,
    decode::{Decoded, Specs, decode},
    encode::{Heading, encode},
    error::ApiError,
    models::Model,
};
use crate::{
    serve::{Outcome, Report},
    tensor::Tensor,
};

/// The most bytes of JSON that an element of an output takes, roughly.
const MAX_ELEMENT_BYTES: usize = 16;

/// Answers an inference request. The latency budget counts from when the whole body is here.
pub(super) async fn infer(
    State(shared): State<Arc<Shared>>,
    model: Model,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let service = &model.service;
    let specs = Specs {
        inputs: service.input_specs(),
        outputs: service.output_specs(),
        num_labels: service.manifest().output.labels.len(),
    };
    let decoded = off_thread(body.len(), move || decode(&body, &specs, arrival)).await;
    let Decoded { request, id, explain, classification } = decoded.inspect_err(|error| {
        shared.api.observer.finished(service.name(), &Outcome::Failed { code: error.code() });
    })?;
    let mut response = service.infer(request).await?;
    if let Some(count) = classification {
        let labels = &service.manifest().output.labels;
        response.output = best_classes(&response.output, count, labels);
    }
    Span::current().record("plan", &response.report.plan.plan);
    let report = response.report.clone();
    let heading = Heading::new(&model, id, explain);
    let num_bytes = num_elements(&response.output).saturating_mul(MAX_ELEMENT_BYTES);
    let json = off_thread(num_bytes, move || encode(&heading, &response)).await?;
    let timing = server_timing(&report, arrival.elapsed());
    let headers =
        [(header::CONTENT_TYPE.as_str(), "application/json".to_owned()), ("server-timing", timing)];
    Ok((headers, json).into_response())
}

fn num_elements(tensor: &Tensor) -> usize {
    tensor.data().len()
}

/// Writes the stages in milliseconds (W3C Server Timing).
fn server_timing(report: &Report, total: Duration) -> String {
    let stages = [
        ("preprocess", report.preprocess),
        ("queue", report.queue),
        ("compute", report.compute),
        ("total", total),
    ];
    let entry =
        |(name, time): (&str, Duration)| format!("{name};dur={:.3}", time.as_secs_f64() * 1e3);
    stages.map(entry).join(", ")
}
