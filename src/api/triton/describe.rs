//! Models in the form of Triton's extensions: configuration, statistics, the index of the pool.

use serde::{Serialize, Serializer};

use super::{
    generate::tensors::{generates, inputs, outputs},
    messages::{
        DataType as WireType, InferBatchStatistics, InferStatistics, ModelConfig, ModelInput,
        ModelOutput, ModelParameter, ModelStatistics, ModelTransactionPolicy, StatisticDuration,
        repository_index_response::ModelIndex,
    },
};
use crate::{
    api::{http::models::PLATFORM, inference::Model},
    serve::{FamilyState, Repository, Tally},
    tensor::{DataType, TensorSpec},
};

/// Backend of every model, as configurations name it.
const BACKEND: &str = "onnxruntime";

/// Returns the configuration of a model. One that generates has several answers to a request, and
/// shapes without a batch: a request has one text.
pub(crate) fn config(model: &Model) -> ModelConfig {
    let manifest = model.service.manifest();
    let decoupled = generates(model);
    let max_batch = if decoupled { 0 } else { manifest.limits.max_batch };
    let dims = |spec: &TensorSpec| {
        let mut shape = spec.protocol_shape();
        shape.split_off(usize::from(!decoupled))
    };
    let inputs = inputs(model).into_iter().map(|spec| ModelInput {
        data_type: wire_type(spec.data_type).into(),
        dims: dims(&spec),
        name: spec.name,
        // A request gives one of several sets of inputs.
        optional: true,
    });
    let outputs = outputs(model).into_iter().map(|spec| ModelOutput {
        data_type: wire_type(spec.data_type).into(),
        dims: dims(&spec),
        name: spec.name,
    });
    let parameters = [
        ("task", manifest.task.clone()),
        ("license", manifest.license.clone()),
        ("metric", manifest.quality.metric.name().to_owned()),
    ];
    let parameter =
        |(name, string_value): (&str, String)| (name.to_owned(), ModelParameter { string_value });
    ModelConfig {
        name: model.service.name().to_owned(),
        platform: PLATFORM.to_owned(),
        max_batch_size: i32::try_from(max_batch).unwrap_or(i32::MAX),
        input: inputs.collect(),
        output: outputs.collect(),
        parameters: parameters.map(parameter).into(),
        backend: BACKEND.to_owned(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled }),
    }
}

/// Returns the statistics of the requests that a model has answered.
pub(crate) fn statistics(model: &Model) -> ModelStatistics {
    let statistics = model.service.statistics();
    let batches = statistics.batches.values();
    let sum = |part: fn(&crate::serve::BatchTally) -> Tally| {
        Some(duration(batches.clone().map(part).fold(Tally::default(), Tally::plus)))
    };
    let nothing = || Some(StatisticDuration::default());
    let batch_stats = statistics.batches.iter().map(|(size, batch)| InferBatchStatistics {
        batch_size: *size as u64,
        compute_input: Some(duration(batch.preprocess)),
        compute_infer: Some(duration(batch.compute)),
        compute_output: nothing(),
    });
    let last = statistics.last.map_or(0, |last| last.as_millis());
    ModelStatistics {
        name: model.service.name().to_owned(),
        version: model.service.digest().to_owned(),
        last_inference: u64::try_from(last).unwrap_or(u64::MAX),
        inference_count: statistics.num_inputs(),
        execution_count: statistics.answered.count,
        inference_stats: Some(InferStatistics {
            success: Some(duration(statistics.answered)),
            fail: Some(duration(statistics.failed)),
            queue: Some(duration(statistics.queue)),
            compute_input: sum(|batch| batch.preprocess),
            compute_infer: sum(|batch| batch.compute),
            compute_output: nothing(),
            cache_hit: nothing(),
            cache_miss: nothing(),
        }),
        batch_stats: batch_stats.collect(),
    }
}

/// Returns the index of the pool's families; if `ready` is true, only those that take requests.
pub(crate) fn index(repository: &Repository, ready: bool) -> Vec<ModelIndex> {
    let entry = |name: String| {
        let (version, state, reason) = match repository.registry().state(&name) {
            Some(FamilyState::Ready(service)) => {
                (service.digest().to_owned(), "READY", String::new())
            }
            Some(FamilyState::Loading) => (String::new(), "LOADING", String::new()),
            Some(FamilyState::Unloaded) => (String::new(), "UNAVAILABLE", "unloaded".to_owned()),
            Some(FamilyState::Failed { reason }) => (String::new(), "UNAVAILABLE", reason),
            None => (String::new(), "UNAVAILABLE", "never loaded".to_owned()),
        };
        ModelIndex { name, version, state: state.to_owned(), reason }
    };
    let entries = repository.names().into_iter().map(entry);
    entries.filter(|entry| !ready || entry.state == "READY").collect()
}

/// Writes an element type by its name; the messages hold its number.
pub(crate) fn data_type_name<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let known = WireType::try_from(*value).unwrap_or(WireType::TypeInvalid);
    known.as_str_name().serialize(serializer)
}

fn duration(tally: Tally) -> StatisticDuration {
    let ns = u64::try_from(tally.time.as_nanos()).unwrap_or(u64::MAX);
    StatisticDuration { count: tally.count, ns }
}

fn wire_type(data_type: DataType) -> WireType {
    match data_type {
        DataType::Bool => WireType::TypeBool,
        DataType::U8 => WireType::TypeUint8,
        DataType::U16 => WireType::TypeUint16,
        DataType::U32 => WireType::TypeUint32,
        DataType::U64 => WireType::TypeUint64,
        DataType::I8 => WireType::TypeInt8,
        DataType::I16 => WireType::TypeInt16,
        DataType::I32 => WireType::TypeInt32,
        DataType::I64 => WireType::TypeInt64,
        DataType::F16 => WireType::TypeFp16,
        DataType::BF16 => WireType::TypeBf16,
        DataType::F32 => WireType::TypeFp32,
        DataType::F64 => WireType::TypeFp64,
        DataType::Bytes => WireType::TypeString,
    }
}
