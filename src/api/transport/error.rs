//! Errors of setting up encrypted connections.

use std::path::PathBuf;

/// Error for TLS files that are refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("{}: cannot be read as PEM", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file that must hold certificates holds none.
    #[error("{}: holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is not valid now.
    #[error("{}: the certificate is valid from {from} to {until} only", path.display())]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// First time at which the certificate is valid.
        from: String,
        /// Last time at which the certificate is valid.
        until: String,
    },
    /// Certificate and key do not match, or cannot be used.
    #[error("{} and {} cannot be used", certificate.display(), key.display())]
    Refused {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The reason.
        #[source]
        source: tokio_rustls::rustls::Error,
    },
    /// The authorities' certificates for checking clients cannot be used.
    #[error("{}: cannot be used to check clients' certificates", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
