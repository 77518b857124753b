//! Limits of connections.

use std::time::Duration;

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most connections at once, over all ports; the next ones are answered 503.
    pub max_connections: usize,
    /// The most requests at once on an HTTP/2 connection.
    pub max_streams: u32,
    /// How long a connection may take until the head of its first request is there, a TLS
    /// handshake included.
    pub header_timeout: Duration,
    /// How long a connection may stay open without a request, and a stream without a message.
    pub idle_timeout: Duration,
    /// How long an answer may wait for its client to take more of it.
    pub write_timeout: Duration,
    /// How long running requests may take after the server is told to stop.
    pub drain_timeout: Duration,
}
