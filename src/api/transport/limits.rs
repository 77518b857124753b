//! Limits of connections.

use std::time::Duration;

/// Limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at once, over all ports; further ones are answered 503.
    pub max_connections: usize,
    /// Most requests at once on an HTTP/2 connection.
    pub max_streams: u32,
    /// Time until the head of a connection's first request must be there, including a TLS
    /// handshake.
    pub header_timeout: Duration,
    /// Time that a connection may stay open without a request, and a stream without a message.
    pub idle_timeout: Duration,
    /// Time that an answer may wait for its client to take more of it.
    pub write_timeout: Duration,
    /// Time that running requests may take after the server is told to stop.
    pub drain_timeout: Duration,
}
