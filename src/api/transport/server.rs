//! Sockets: connections are accepted within their limit, and drained in the end.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Protocol, Tls, activity::Patience, connection::Connections, limits::Limits};
use crate::serve::Observer;

/// Most connections over the limit that are answered at once; further ones wait in the kernel.
const MAX_REFUSALS: usize = 64;

/// Time-outs of a connection over the limit, for its request and for reading the refusal.
const REFUSAL: Patience = Patience {
    first: Duration::from_secs(2),
    idle: Duration::from_millis(200),
    unread: Duration::from_secs(1),
};

/// Settings of connections; cheap to clone, and shared by all ports.
#[derive(Clone)]
pub struct Transport {
    limits: Limits,
    tls: Option<Arc<Tls>>,
    connections: Arc<Semaphore>,
    observer: Arc<dyn Observer>,
}

impl Transport {
    /// Creates the settings; without `tls`, connections are not encrypted.
    pub fn new(limits: Limits, tls: Option<Arc<Tls>>, observer: Arc<dyn Observer>) -> Self {
        let connections = Arc::new(Semaphore::new(limits.max_connections));
        Self { limits, tls, connections, observer }
    }

    /// Returns the limits of connections.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Transport").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Server of routes on a socket.
#[derive(Debug)]
pub(crate) struct Server {
    /// Protocol of the port.
    pub(crate) protocol: Protocol,
    /// The routes.
    pub(crate) router: Router,
    /// Routes for connections over the limit.
    pub(crate) refusal: Router,
    /// Settings of connections.
    pub(crate) transport: Transport,
}

impl Server {
    /// Serves until `shutdown`, then drains. A drain accepts no connections, closes idle ones, and
    /// lets running requests end within the limit.
    ///
    /// # Errors
    ///
    /// Fails if the socket has no address.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops accepting; connections that are open go on until the runtime ends.
    pub(crate) async fn run(
        self,
        mut listener: TcpListener,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let Self { protocol, transport, .. } = &self;
        let Limits { drain_timeout, .. } = transport.limits;
        let is_encrypted = transport.tls.is_some();
        let address = listener.local_addr()?;
        tracing::info!(%address, tls = is_encrypted, "serving {}", protocol.title());
        let tls = transport.tls.clone();
        let connections =
            Arc::new(Connections::new(*protocol, &transport.limits, tls, shutdown.clone()));
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        let tasks = TaskTracker::new();
        let accept = async {
            loop {
                let (stream, _) = Listener::accept(&mut listener).await;
                self.take(stream, &connections, &refusals, &tasks).await;
            }
        };
        let _: Option<Infallible> = shutdown.run_until_cancelled(accept).await;
        drop(listener);
        tasks.close();
        if tokio::time::timeout(drain_timeout, tasks.wait()).await.is_err() {
            tracing::warn!(?drain_timeout, "requests were still running at the end of the drain");
        }
        Ok(())
    }

    /// Serves a connection within the limit, and refuses one over it. Waits while as many are being
    /// refused as may be at once; further connections wait in the kernel meanwhile.
    async fn take(
        &self,
        stream: TcpStream,
        connections: &Arc<Connections>,
        refusals: &Arc<Semaphore>,
        tasks: &TaskTracker,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection stays without TCP_NODELAY");
        }
        let connections = connections.clone();
        let limits = self.transport.limits;
        let patience = Patience {
            first: limits.header_timeout,
            idle: limits.idle_timeout,
            unread: limits.write_timeout,
        };
        let served = self.transport.connections.clone();
        let place = tokio::select! {
            biased;
            Ok(permit) = served.acquire_owned() => Place::Served(permit),
            Ok(permit) = refusals.clone().acquire_owned() => Place::Refused(permit),
            else => return,
        };
        match place {
            Place::Served(permit) => {
                let counted = Counted::new(self.transport.observer.clone(), self.protocol, permit);
                let router = self.router.clone();
                tasks.spawn(async move {
                    connections.serve(stream, router, patience).await;
                    drop(counted);
                });
            }
            Place::Refused(permit) => {
                self.transport.observer.connection_refused(self.protocol.name());
                let router = self.refusal.clone();
                tasks.spawn(async move {
                    connections.serve(stream, router, REFUSAL).await;
                    drop(permit);
                });
            }
        }
    }
}

/// Place of a connection, which it holds while it is open.
enum Place {
    Served(OwnedSemaphorePermit),
    Refused(OwnedSemaphorePermit),
}

/// An open connection that the observer counts.
struct Counted {
    observer: Arc<dyn Observer>,
    protocol: Protocol,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(observer: Arc<dyn Observer>, protocol: Protocol, permit: OwnedSemaphorePermit) -> Self {
        observer.connections_changed(protocol.name(), 1);
        Self { observer, protocol, _permit: permit }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.observer.connections_changed(self.protocol.name(), -1);
    }
}
