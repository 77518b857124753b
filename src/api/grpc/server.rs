//! The gRPC service on a socket.

use std::io;

use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, service::Routes};
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    codec::unpacked::unpack,
    generated::grpc_inference_service_server::GrpcInferenceServiceServer,
    health::{Reporters, report_health},
    idle::limit_idle,
    layers::{self, Front},
    service::InferenceService,
};
use crate::api::{
    ApiConfig, ApiState,
    transport::{Protocol, Server, Transport},
    triton::messages::DESCRIPTORS,
};

/// Serves until `shutdown`, then drains. A drain takes no calls, and lets running ones end within
/// the transport's limit. Without `listener`, nothing is served.
///
/// # Errors
///
/// Fails if the socket has no address, or if the descriptors for reflection cannot be read.
///
/// # Cancel safety
///
/// Dropping the future stops accepting connections; open ones go on until the runtime ends.
pub async fn serve_grpc(
    listener: Option<TcpListener>,
    state: ApiState,
    config: ApiConfig,
    transport: Transport,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let Some(listener) = listener else {
        return Ok(());
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let (stranger_reporter, stranger_health) = tonic_health::server::health_reporter();
    let reporters = Reporters { all: reporter, stranger: stranger_reporter };
    let reporting = report_health(reporters, state.repository.registry().clone());
    let stranger_health = Routes::new(stranger_health).prepare().into_axum_router();
    let front = Front { gate: state.gate.clone(), stranger_health };
    // A stream is not idle while a message takes long.
    let idle = transport.limits().idle_timeout.max(config.request_timeout);
    let routes = routed(Routes::new(health), state.clone(), &config)?;
    let router = routes
        .layer(middleware::from_fn_with_state(config.max_body, unpack))
        .layer(middleware::from_fn(layers::compress_like_the_request))
        .layer(middleware::from_fn_with_state(idle, limit_idle))
        .layer(middleware::from_fn_with_state(front, layers::admit))
        .layer(middleware::from_fn_with_state(config.request_timeout, layers::limit_time))
        .layer(CatchPanicLayer::custom(layers::answer_panic))
        .layer(middleware::from_fn_with_state(state, layers::trace));
    let server = Server { protocol: Protocol::Grpc, router, refusal: layers::refusal(), transport };
    tokio::select! {
        result = server.run(listener, shutdown) => result,
        () = reporting => Ok(()),
    }
}

/// Adds all other services to `routes`.
fn routed(routes: Routes, state: ApiState, config: &ApiConfig) -> io::Result<Router> {
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let service = GrpcInferenceServiceServer::new(InferenceService::new(state))
        .max_decoding_message_size(config.max_body.as_usize())
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    Ok(routes
        .add_service(described().build_v1().map_err(io::Error::other)?)
        .add_service(described().build_v1alpha().map_err(io::Error::other)?)
        .add_service(service)
        .prepare()
        .into_axum_router())
}
