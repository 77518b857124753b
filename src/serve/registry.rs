//! The families that a server offers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{FamilyService, ServeError};

/// A family that is served, or the reason why it is not.
#[derive(Debug, Clone)]
pub enum FamilyState {
    /// It answers requests.
    Ready(Arc<FamilyService>),
    /// It did not load; the others are served.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The families by name.
#[derive(Debug)]
pub struct Registry {
    families: BTreeMap<String, FamilyState>,
    draining: AtomicBool,
}

impl Registry {
    /// Offers `families`.
    pub fn new(families: impl IntoIterator<Item = (String, FamilyState)>) -> Self {
        Self { families: families.into_iter().collect(), draining: AtomicBool::new(false) }
    }

    /// Returns every family by name, those that failed included.
    pub fn families(&self) -> Vec<(String, FamilyState)> {
        self.families.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// Returns the family `name`.
    ///
    /// # Errors
    ///
    /// Fails when there is none or it did not load.
    pub fn family(&self, name: &str) -> Result<Arc<FamilyService>, ServeError> {
        match self.families.get(name) {
            Some(FamilyState::Ready(family)) => Ok(family.clone()),
            Some(FamilyState::Failed { .. }) => Err(ServeError::FamilyFailed { name: name.into() }),
            None => Err(ServeError::UnknownFamily {
                name: name.chars().take(100).collect(),
                known: self.families.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Tells whether at least one family answers and the server is not stopping.
    pub fn is_ready(&self) -> bool {
        let ready = |state: &FamilyState| matches!(state, FamilyState::Ready(_));
        !self.is_draining() && self.families.values().any(ready)
    }

    /// Tells whether the server is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Makes the server not ready, so that balancers send no more requests.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
