//! Tokens and certificates for clients, whose files are read again while the server runs.

use std::{path::PathBuf, sync::Arc};

use super::{AppError, NetworkConfig};
use crate::{
    api::{Clients, Gate, Tls},
    tensor::chain,
};

/// Tokens and certificates; clones share them.
#[derive(Clone)]
pub struct Secrets {
    pub(super) gate: Arc<Gate>,
    pub(super) tls: Option<Arc<Tls>>,
    clients: Option<PathBuf>,
}

impl Secrets {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    ///
    /// Fails when a file cannot be read or is wrong.
    pub fn read(config: &NetworkConfig) -> Result<Self, AppError> {
        let tls = config.tls.clone().map(Tls::read).transpose()?.map(Arc::new);
        let clients = config.clients.as_deref().map(Clients::read).transpose()?;
        Ok(Self { gate: Arc::new(Gate::new(clients)), tls, clients: config.clients.clone() })
    }

    /// Reads the files again. A wrong file changes nothing and is logged.
    pub fn reload(&self) {
        match self.clients.as_deref().map(Clients::read) {
            Some(Ok(clients)) => {
                self.gate.replace(Some(clients));
                tracing::info!("clients were read again");
            }
            Some(Err(error)) => {
                tracing::error!("the clients stay as they were: {}", chain(&error));
            }
            None => {}
        }
        match self.tls.as_ref().map(|tls| tls.reload()) {
            Some(Ok(())) => tracing::info!("certificates were read again"),
            Some(Err(error)) => {
                tracing::error!("the certificate stays as it was: {}", chain(&error));
            }
            None => {}
        }
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Secrets").field("clients", &self.clients).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
