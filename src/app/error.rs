//! Errors of building and running a server.

use std::{io, path::PathBuf};

use crate::{
    api::{ClientsError, TlsError},
    arch::ArchError,
    fit::FitError,
    offer::OfferError,
    pool::PoolError,
    runtime::RuntimeError,
};

/// Error of building or running a server, or of preparing a family.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The runtime does not start.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The inference threads do not start.
    #[error("the inference threads cannot start")]
    Threads(#[source] io::Error),
    /// A port cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Address.
        address: String,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// The sockets failed while the server ran.
    #[error("serving failed")]
    Serving(#[source] io::Error),
    /// The pool's folder cannot be read.
    #[error("the pool `{}` cannot be read", folder.display())]
    Pool {
        /// Folder.
        folder: PathBuf,
        /// Reason.
        #[source]
        source: io::Error,
    },
    /// The pool has no family.
    #[error("the pool `{}` holds no family.toml", folder.display())]
    EmptyPool {
        /// Folder.
        folder: PathBuf,
    },
    /// A name is not the name of a folder of the pool.
    #[error("`{name}` is not a family name: it names a folder of the pool")]
    FamilyName {
        /// Name.
        name: String,
    },
    /// A family does not load.
    #[error("family `{name}`")]
    Family {
        /// Name.
        name: String,
        /// Reason.
        #[source]
        source: Box<ArchError>,
    },
    /// A family's folder cannot be written to.
    #[error("family `{name}`")]
    Writer {
        /// Name.
        name: String,
        /// Reason.
        #[source]
        source: PoolError,
    },
    /// A pin names no family of the pool.
    #[error("--pin: `{pin}` is not a FAMILY/NAME of the pool's families")]
    PinnedFamily {
        /// Pin.
        pin: String,
    },
    /// A pin names no module of its family.
    #[error("--pin: {reason}")]
    PinnedModule {
        /// Reason.
        reason: String,
    },
    /// The machine has no folder for profiles.
    #[error(
        "there is no folder for profiles: give one with --cache, or set HOME or XDG_CACHE_HOME"
    )]
    NoCache,
    /// Profiles cannot be read or written.
    #[error(transparent)]
    Profiles(#[from] PoolError),
    /// Modules cannot be measured.
    #[error(transparent)]
    Measure(#[from] FitError),
    /// Modules were measured, but some have no profile.
    #[error("modules are left without a profile")]
    Unmeasured,
    /// The plans of a family cannot be computed.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The file of clients is wrong.
    #[error(transparent)]
    Clients(#[from] ClientsError),
    /// The files for TLS are wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// None of the families loads.
    #[error("nothing can be served: {reasons}; --exit-on-error=false serves on without it")]
    NothingServed {
        /// Names of the families with the reasons.
        reasons: String,
    },
    /// The server stops.
    #[error("the server is stopping")]
    Stopping,
    /// The thread that loads the families panicked.
    #[error("loading the families panicked")]
    Panicked,
}
