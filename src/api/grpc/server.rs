//! The gRPC service on a socket.

use std::{io, time::Duration};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, transport::Server};

use super::{health::report_health, service::InferenceService};
use crate::api::{
    ApiConfig, ApiState,
    messages::{DESCRIPTORS, grpc_inference_service_server::GrpcInferenceServiceServer},
};

/// The longest time between two pings of an idle connection; one without an answer is closed.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves until `shutdown`, then drains: no call is taken any more, and running ones may end within
/// `drain_timeout`. Without a listener nothing is served.
///
/// # Errors
///
/// Fails when the socket does, or the descriptors for reflection cannot be read.
///
/// # Cancel safety
///
/// Dropping the future ends the connections.
pub async fn serve_grpc(
    listener: Option<TcpListener>,
    state: ApiState,
    config: ApiConfig,
    shutdown: CancellationToken,
    drain_timeout: Duration,
) -> io::Result<()> {
    let Some(listener) = listener else {
        return Ok(());
    };
    tracing::info!(address = %listener.local_addr()?, "serving gRPC");
    let (reporter, health) = tonic_health::server::health_reporter();
    let reporting = report_health(reporter, state.repository.registry().clone());
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection = described().build_v1().map_err(io::Error::other)?;
    let older_reflection = described().build_v1alpha().map_err(io::Error::other)?;
    let service = GrpcInferenceServiceServer::new(InferenceService::new(state))
        .max_decoding_message_size(config.max_body.as_usize())
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    let server = Server::builder()
        .timeout(config.request_timeout)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(health)
        .add_service(reflection)
        .add_service(older_reflection)
        .add_service(service)
        .serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain_timeout).await;
    };
    tokio::select! {
        result = server => result.map_err(io::Error::other),
        () = overdue => {
            tracing::warn!(?drain_timeout, "calls were still running at the end of the drain");
            Ok(())
        }
        () = reporting => Ok(()),
    }
}
