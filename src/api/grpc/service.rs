//! The calls of `inference.GRPCInferenceService`.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::{Instrument, Span, debug_span, field::Empty};

use super::{
    codec::encoded::{Encoded, Envelope},
    describe,
    generated::grpc_inference_service_server::GrpcInferenceService,
    infer::{decode, encode},
    layers::wait_of,
    repository,
    status::status_of,
};
use crate::api::{
    access::clients::{Gate, Permit},
    codec::{
        body::{in_json_bytes, off_thread},
        specs::Specs,
    },
    error::ApiError,
    inference::{self, Call, Model},
    layers::authorization,
    state::ApiState,
    triton::{
        describe::{config, statistics},
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

type Answers =
    Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send + 'static>>;

impl InferenceService {
    /// Creates a service that answers from `state`.
    pub(super) fn new(state: ApiState) -> Self {
        Self { state }
    }

    fn model(&self, name: &str, version: String) -> Result<Model, ApiError> {
        let version = Some(version).filter(|version| !version.is_empty());
        Model::find(self.state.repository.registry(), name, version)
    }

    /// Answers one message.
    async fn infer(
        &self,
        message: Encoded,
        arrival: Instant,
        rights: CallRights,
    ) -> Result<ModelInferResponse, ApiError> {
        let Envelope { model_name, model_version, num_raw_bytes, .. } = message.open()?;
        let model = self.model(&model_name, model_version)?;
        let CallRights { permit, wait } = rights;
        let num_bytes = in_json_bytes(message.len() - num_raw_bytes, num_raw_bytes);
        let call = Call { permit, wait, num_bytes };
        let decode = move |specs: &Specs| decode(message.decode(&specs.bounds)?, specs, arrival);
        let answer = inference::infer(&model, call, decode).await?;
        off_thread(answer.num_bytes(), move || encode(answer))
            .instrument(debug_span!("encode"))
            .await
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
    type ModelStreamInferStream = Answers;

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
    ) -> Result<Response<Answers>, Status> {
        let service = Arc::new(self.clone());
        let metadata = Arc::new(request.metadata().clone());
        let stream = Span::current();
        let answers = request.into_inner().then(move |message| {
            let (service, metadata) = (service.clone(), metadata.clone());
            let span = tracing::info_span!(parent: &stream, "message", model = Empty, plan = Empty);
            let answered = async move {
                let message: Encoded = message?;
                let id = message.open().map(|envelope| envelope.id).unwrap_or_default();
                let arrival = Instant::now();
                let answered = async {
                    let rights = CallRights::of_message(&service.state.gate, &metadata)?;
                    service.infer(message, arrival, rights).await
                };
                Ok(match call(answered).await {
                    Ok(response) => ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(response.into_inner()),
                    },
                    Err(status) => ModelStreamInferResponse {
                        error_message: status.message().to_owned(),
                        infer_response: Some(ModelInferResponse {
                            id,
                            ..ModelInferResponse::default()
                        }),
                    },
                })
            };
            answered.instrument(span)
        });
        Ok(Response::new(Box::pin(answers)))
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
