//! The HTTP routes on a socket.

use std::io;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    layers,
    transport::{Protocol, Server, Transport},
};

/// Serves `router` until `shutdown`, then drains. A drain accepts no connections, closes idle ones,
/// and lets running requests end within the transport's limit.
///
/// The caller that cancels `shutdown` starts draining the [`Registry`](crate::serve::Registry)
/// first. Readiness then turns false on the connections that are still open.
///
/// # Errors
///
/// Fails if the socket has no address.
///
/// # Cancel safety
///
/// Dropping the future stops accepting connections; open ones go on until the runtime ends.
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    transport: Transport,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let refusal = layers::refusal();
    let server = Server { protocol: Protocol::Http, router, refusal, transport };
    server.run(listener, shutdown).await
}
