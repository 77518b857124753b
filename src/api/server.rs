//! The routes on a socket.

use std::{io, time::Duration};

use axum::{Router, serve::ListenerExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `shutdown`, then drains: no connection is accepted any more, idle ones are closed,
/// and running requests may end within `drain_timeout`.
///
/// Whoever cancels `shutdown` starts draining the [`Registry`](crate::serve::Registry) first, so
/// that readiness turns false on the connections that are still open.
///
/// # Errors
///
/// Fails when the socket does.
///
/// # Cancel safety
///
/// Dropping the future stops accepting; connections that are open go on until the runtime ends.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    drain_timeout: Duration,
) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection stays without TCP_NODELAY");
        }
    });
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.clone().cancelled_owned())
        .into_future();
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain_timeout).await;
    };
    tokio::select! {
        result = server => result,
        () = overdue => {
            tracing::warn!(?drain_timeout, "requests were still running at the end of the drain");
            Ok(())
        }
    }
}
