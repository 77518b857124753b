//! Settings of a server, validated when it is built.

use std::{path::PathBuf, time::Duration};

use crate::{
    api::{ApiConfig, Limits, TlsFiles},
    serve::ServiceConfig,
};

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Families.
    pub pool: PoolConfig,
    /// Queue and workers.
    pub service: ServiceConfig,
    /// Requests.
    pub api: ApiConfig,
    /// Sockets and clients.
    pub network: NetworkConfig,
}

/// Settings of the pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Folder of families.
    pub folder: PathBuf,
    /// File of costs from other machines, or `None` for the one in the pool's folder.
    pub profile: Option<PathBuf>,
    /// Modules that are never evicted, as FAMILY/NAME.
    pub pins: Vec<String>,
    /// Time between two looks at the folder; zero for none.
    pub poll: Duration,
    /// Whether the server ends with an error if none of the families loads.
    pub exit_on_error: bool,
}

/// Settings of sockets and clients.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Address of HTTP, as HOST:PORT.
    pub http: String,
    /// Address of gRPC, as HOST:PORT, or `None` for no gRPC.
    pub grpc: Option<String>,
    /// Limits of connections.
    pub limits: Limits,
    /// File of clients, or `None` if every client is served.
    pub clients: Option<PathBuf>,
    /// Files for TLS, or `None` for plain text.
    pub tls: Option<TlsFiles>,
}
