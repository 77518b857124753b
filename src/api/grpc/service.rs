//! The calls of `inference.GRPCInferenceService`.

use std::time::{Duration, Instant};

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::{Instrument, debug_span};

use super::{
    codec::encoded::{Encoded, Envelope},
    describe,
    generated::grpc_inference_service_server::GrpcInferenceService,
    infer::{encode, parts},
    layers::wait_of,
    repository,
    status::status_of,
    stream::{Asking, stream},
};
use crate::api::{
    access::clients::{Gate, Permit},
    answers::{Answers, answer, answers},
    codec::{
        body::{in_json_bytes, off_thread},
        bounds::Bounds,
    },
    error::ApiError,
    inference::{Call, Model},
    layers::authorization,
    state::ApiState,
    triton::{
        describe::{config, statistics},
        generate::tensors::generates,
        messages::{
            ModelConfigRequest, ModelConfigResponse, ModelInferResponse, ModelMetadataRequest,
            ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest,
            ModelStatisticsResponse, ModelStreamInferResponse, RepositoryIndexRequest,
            RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
            RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest,
            ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
            ServerReadyResponse,
        },
    },
};

/// Service that answers the calls; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct InferenceService {
    state: ApiState,
}

/// Rights of a call: the client's rights, and the time that it waits.
#[derive(Debug, Clone)]
struct CallRights {
    permit: Permit,
    /// Time that the client waits.
    wait: Option<Duration>,
}

impl CallRights {
    /// Returns the terms of a call that passed the gate.
    fn of<T>(request: &Request<T>) -> Result<Self, ApiError> {
        let permit = request.extensions().get().cloned().ok_or(ApiError::NoToken)?;
        Ok(Self { permit, wait: wait_of(request.metadata().as_ref()) })
    }

    /// Returns the terms of a message of a stream, and counts the message at the gate. A deadline
    /// belongs to the whole stream.
    fn of_message(gate: &Gate, metadata: &MetadataMap) -> Result<Self, ApiError> {
        Ok(Self { permit: gate.pass(authorization(metadata.as_ref()))?, wait: None })
    }
}

impl InferenceService {
    /// Creates a service that answers from `state`.
    pub(super) fn new(state: ApiState) -> Self {
        Self { state }
    }

    fn model(&self, name: &str, version: String) -> Result<Model, ApiError> {
        let version = Some(version).filter(|version| !version.is_empty());
        Model::find(self.state.repository.registry(), name, version)
    }

    /// Returns the model that a message names, and the terms of the call.
    fn open(&self, message: &Encoded, rights: CallRights) -> Result<(Model, Call), ApiError> {
        let Envelope { model_name, model_version, num_raw_bytes, .. } = message.open()?;
        let model = self.model(&model_name, model_version)?;
        let CallRights { permit, wait } = rights;
        let num_bytes = in_json_bytes(message.len() - num_raw_bytes, num_raw_bytes);
        Ok((model, Call { permit, wait, num_bytes }))
    }

    /// Answers one message with one answer.
    async fn infer(
        &self,
        message: Encoded,
        arrival: Instant,
        rights: CallRights,
    ) -> Result<ModelInferResponse, ApiError> {
        let (model, call) = self.open(&message, rights)?;
        let read = move |bounds: &Bounds| parts(message.decode(bounds)?);
        let answer = answer(model, call, arrival, read).await?;
        off_thread(answer.num_bytes(), move || encode(answer))
            .instrument(debug_span!("encode"))
            .await
    }
}

/// Messages of a stream, each of which counts as a request of its own.
#[derive(Debug)]
struct StreamAsking {
    service: InferenceService,
    metadata: MetadataMap,
}

impl Asking for StreamAsking {
    fn has_text(&self, message: &Encoded) -> bool {
        let model = message
            .open()
            .and_then(|envelope| self.service.model(&envelope.model_name, envelope.model_version));
        model.is_ok_and(|model| generates(&model))
    }

    async fn answers(&self, message: Encoded) -> Result<Answers, ApiError> {
        let arrival = Instant::now();
        let rights = CallRights::of_message(&self.service.state.gate, &self.metadata)?;
        let (model, call) = self.service.open(&message, rights)?;
        answers(model, call, arrival, move |bounds| parts(message.decode(bounds)?)).await
    }
}

/// Runs a call, and logs whether it was answered or refused.
async fn call<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<Response<T>, Status> {
    match work.await {
        Ok(message) => {
            tracing::debug!("answered");
            Ok(Response::new(message))
        }
        Err(error) => {
            tracing::debug!(error = error.shortened(), "refused");
            Err(status_of(&error))
        }
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    type ModelStreamInferStream = ReceiverStream<Result<ModelStreamInferResponse, Status>>;

    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        call(async { Ok(ServerLiveResponse { live: true }) }).await
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.state.repository.registry().is_ready();
        call(async { Ok(ServerReadyResponse { ready }) }).await
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let draining = self.state.repository.registry().is_draining();
        let ready = !draining && self.model(&name, version).is_ok();
        call(async { Ok(ModelReadyResponse { ready }) }).await
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        call(async { Ok(describe::server()) }).await
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        call(async {
            let ModelMetadataRequest { name, version } = request.into_inner();
            self.model(&name, version).map(|model| describe::model(&model))
        })
        .await
    }

    async fn model_infer(
        &self,
        request: Request<Encoded>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let arrival = Instant::now();
        call(async {
            let rights = CallRights::of(&request)?;
            self.infer(request.into_inner(), arrival, rights).await
        })
        .await
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<Encoded>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (metadata, _, messages) = request.into_parts();
        let asking = StreamAsking { service: self.clone(), metadata };
        Ok(Response::new(stream(asking, messages)))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let answer = async {
            let ModelConfigRequest { name, version } = request.into_inner();
            let config = Some(config(&self.model(&name, version)?));
            Ok(ModelConfigResponse { config })
        };
        call(answer).await
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let answer = async {
            let ModelStatisticsRequest { name, version } = request.into_inner();
            let models = match name.is_empty() {
                true => Model::all(self.state.repository.registry()),
                false => vec![self.model(&name, version)?],
            };
            let model_stats = models.iter().map(statistics).collect();
            Ok(ModelStatisticsResponse { model_stats })
        };
        call(answer).await
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        call(async { repository::index(&self.state.repository, request.into_inner()).await }).await
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        call(async {
            CallRights::of(&request)?.permit.check_admin()?;
            repository::load(&self.state.repository, request.into_inner()).await
        })
        .await
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        call(async {
            CallRights::of(&request)?.permit.check_admin()?;
            repository::unload(&self.state.repository, request.into_inner()).await
        })
        .await
    }
}
