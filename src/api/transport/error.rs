//! Why connections cannot be encrypted.

use std::path::PathBuf;

/// Why the files for TLS are refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{}: cannot be read as PEM", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is nothing in a file that ought to hold certificates.
    #[error("{}: holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is not valid today.
    #[error("{}: the certificate is valid from {from} to {until} only", path.display())]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// The first time at which it is valid.
        from: String,
        /// The last time.
        until: String,
    },
    /// Certificate and key do not go together, or cannot be used.
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
    /// The certificates of the authority for clients cannot be used.
    #[error("{}: cannot be used to check clients' certificates", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
