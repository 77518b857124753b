//! Certificates: read from files, checked, and replaced while connections are open.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Protocol, TlsError};
use crate::tensor::{FileKind, read_bytes};

/// Paths of the files for TLS, all in PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, and the certificates that lead to a known authority.
    pub certificate: PathBuf,
    /// Private key of the server's certificate.
    pub key: PathBuf,
    /// Authorities for clients' certificates; if given, a client without a certificate is refused.
    pub client_authority: Option<PathBuf>,
}

/// Server side of encrypted connections.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    configs: RwLock<Configs>,
}

#[derive(Debug)]
struct Configs {
    http: Arc<ServerConfig>,
    grpc: Arc<ServerConfig>,
}

impl Tls {
    /// Reads and checks the files.
    ///
    /// # Errors
    ///
    /// Fails on files that cannot be read, are not valid now, or do not match.
    pub fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let configs = RwLock::new(Configs::read(&files)?);
        Ok(Self { files, configs })
    }

    /// Reads the files again, for new connections.
    ///
    /// # Errors
    ///
    /// Fails like [`read`](Self::read); the files read before then stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let configs = Configs::read(&self.files)?;
        *self.configs.write().unwrap_or_else(PoisonError::into_inner) = configs;
        Ok(())
    }

    /// Returns the acceptor that encrypts connections of `protocol`.
    pub(super) fn acceptor(&self, protocol: Protocol) -> TlsAcceptor {
        let configs = self.configs.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(match protocol {
            Protocol::Http => configs.http.clone(),
            Protocol::Grpc => configs.grpc.clone(),
        })
    }
}

impl Configs {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&files.certificate)?;
        if let Some(own) = chain.first() {
            check_today(own, &files.certificate)?;
        }
        let key = private_key(&files.key)?;
        let verifier = match &files.client_authority {
            Some(path) => verifier(path, &provider)?,
            None => Arc::new(NoClientAuth),
        };
        let refused = |source| TlsError::Refused {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(refused)?;
        let (mut http, mut grpc) = (config.clone(), config);
        http.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        grpc.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { http: Arc::new(http), grpc: Arc::new(grpc) })
    }
}

/// Reads the certificates of a file, which must hold at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_bytes(path, FileKind::Pem).map_err(|error| unreadable(path, error))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(path, error))?;
    match found.is_empty() {
        true => Err(TlsError::NoCertificate { path: path.to_owned() }),
        false => Ok(found),
    }
}

/// Reads the first private key of a file.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read_bytes(path, FileKind::Pem).map_err(|error| unreadable(path, error))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unreadable(path, error))
}

/// Checks that a certificate is valid now; every client would refuse it otherwise.
fn check_today(certificate: &CertificateDer<'_>, path: &Path) -> Result<(), TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| unreadable(path, error))?;
    let validity = parsed.validity();
    if validity.is_valid() {
        return Ok(());
    }
    Err(TlsError::NotValidNow {
        path: path.to_owned(),
        from: validity.not_before.to_string(),
        until: validity.not_after.to_string(),
    })
}

/// Returns the verifier of clients' certificates, with the authorities in the file at `path`.
fn verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let refused = |source| TlsError::Authority { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| refused(error.into()))?;
    }
    WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| refused(error.into()))
}

fn unreadable(path: &Path, error: impl Error + Send + Sync + 'static) -> TlsError {
    TlsError::Unreadable { path: path.to_owned(), source: Box::new(error) }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
