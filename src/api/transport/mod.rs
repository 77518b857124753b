//! Connections: who may have one, for how long, and whether it is encrypted.
//!
//! Both protocols' routes run here, on sockets that the caller bound. Start at
//! [`Server::run`].

mod activity;
mod answer;
mod arriving;
mod connection;
mod error;
mod limits;
mod server;
mod tls;

pub use error::TlsError;
pub use limits::Limits;
pub(super) use server::Server;
pub use server::Transport;
pub use tls::{Tls, TlsFiles};

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, and HTTP/2 for those who ask for it.
    Http,
    /// gRPC, which is HTTP/2.
    Grpc,
}

impl Protocol {
    /// Returns the name that people write.
    fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Grpc => "gRPC",
        }
    }

    /// Returns the name that metrics and the log write.
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}
