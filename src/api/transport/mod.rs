//! Connections: their number, their time limits, and their encryption.
//!
//! Both protocols' routes run here, on sockets that the caller bound. Start at
//! [`Server::run`].

mod activity;
mod answer;
mod arriving;
mod connection;
mod error;
mod limits;
pub(super) mod server;
mod tls;

pub use error::TlsError;
pub use limits::Limits;
pub use server::Transport;
pub use tls::{Tls, TlsFiles};

pub(super) use server::Server;

/// Protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, and HTTP/2 for clients that ask for it.
    Http,
    /// gRPC, which uses HTTP/2.
    Grpc,
}

impl Protocol {
    /// Returns the protocol's name for people.
    fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Grpc => "gRPC",
        }
    }

    /// Returns the protocol's name in metrics and the log.
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}
