//! Registry of the families that a server offers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::serve::{error::ServeError, request::service::FamilyService};

/// A served family, or the reason why it is not served.
#[derive(Debug, Clone)]
pub enum FamilyState {
    /// The family is being loaded for the first time.
    Loading,
    /// The family answers requests.
    Ready(Arc<FamilyService>),
    /// The family did not load; the others are served.
    Failed {
        /// Reason why the family did not load.
        reason: String,
    },
    /// The family was taken out of service.
    Unloaded,
}

/// Families by name.
#[derive(Debug, Default)]
pub struct Registry {
    families: RwLock<BTreeMap<String, FamilyState>>,
    draining: AtomicBool,
}

impl Registry {
    /// Creates a registry that offers `families`.
    pub fn new(families: impl IntoIterator<Item = (String, FamilyState)>) -> Self {
        let families = RwLock::new(families.into_iter().collect());
        Self { families, draining: AtomicBool::new(false) }
    }

    /// Returns every family by name, including those that failed.
    pub fn families(&self) -> Vec<(String, FamilyState)> {
        self.read(|families| {
            families.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
        })
    }

    /// Returns the state of the family `name`, or `None` if it is not offered.
    pub fn state(&self, name: &str) -> Option<FamilyState> {
        self.read(|families| families.get(name).cloned())
    }

    /// Puts the family `name` into `state`. Requests that run on the previous service end on it.
    pub fn set(&self, name: &str, state: FamilyState) {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        let before = families.insert(name.to_owned(), state);
        drop(families);
        // The previous state is dropped after the lock is free: the last reference to a family ends
        // its sessions.
        drop(before);
    }

    /// Removes the family `name`. Requests that run on it end on it.
    pub fn remove(&self, name: &str) {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        let before = families.remove(name);
        drop(families);
        drop(before);
    }

    /// Returns the family `name`.
    ///
    /// # Errors
    ///
    /// Fails when no such family is offered, it did not load, or it is loading or unloaded.
    pub fn family(&self, name: &str) -> Result<Arc<FamilyService>, ServeError> {
        let unavailable = |state| ServeError::Unavailable { name: name.into(), state };
        match self.state(name) {
            Some(FamilyState::Ready(family)) => Ok(family),
            Some(FamilyState::Loading) => Err(unavailable("it is loading")),
            Some(FamilyState::Unloaded) => Err(unavailable("it is unloaded")),
            Some(FamilyState::Failed { reason }) => {
                Err(ServeError::NotLoaded { name: name.into(), reason })
            }
            None => Err(ServeError::UnknownFamily {
                name: name.chars().take(100).collect(),
                known: self
                    .read(|families| families.keys().cloned().collect::<Vec<_>>())
                    .join(", "),
            }),
        }
    }

    /// Returns whether the server takes requests. No family is being loaded for the first time, at
    /// least one answers, and the server is not stopping.
    pub fn is_ready(&self) -> bool {
        self.unready().is_none()
    }

    /// Returns the names of the families that did not load, with the reasons.
    pub fn failures(&self) -> Vec<(String, String)> {
        let failures = self.families().into_iter().filter_map(|(name, state)| match state {
            FamilyState::Failed { reason } => Some((name, reason)),
            FamilyState::Loading | FamilyState::Ready(_) | FamilyState::Unloaded => None,
        });
        failures.collect()
    }

    /// Returns why the server takes no requests, without a name of a family; `None` if it does.
    pub fn unready(&self) -> Option<String> {
        if self.is_draining() {
            return Some("the server is stopping".to_owned());
        }
        self.read(|families| {
            let count = |is: fn(&FamilyState) -> bool| families.values().filter(|s| is(s)).count();
            let of = families.len();
            let loading = count(|state| matches!(state, FamilyState::Loading));
            let failed = count(|state| matches!(state, FamilyState::Failed { .. }));
            match (loading, count(|state| matches!(state, FamilyState::Ready(_)))) {
                (0, 0) => Some(format!("no model is ready: {failed} of {of} did not load")),
                (0, _) => None,
                _ => Some(format!("{loading} of {of} models are loading")),
            }
        })
    }

    /// Returns whether the server is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Marks the server as not ready, so that load balancers no longer send requests.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn read<T>(&self, look: impl FnOnce(&BTreeMap<String, FamilyState>) -> T) -> T {
        look(&self.families.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::support_tests::service;

    #[tokio::test]
    async fn a_server_is_ready_when_nothing_loads_and_something_answers() {
        let registry = Registry::new([("a".to_owned(), FamilyState::Loading)]);
        assert_eq!(registry.unready().as_deref(), Some("1 of 1 models are loading"));
        registry.set("a", FamilyState::Failed { reason: "broken".into() });
        let reason = registry.unready();
        assert_eq!(reason.as_deref(), Some("no model is ready: 1 of 1 did not load"));
        assert_eq!(registry.failures(), [("a".to_owned(), "broken".to_owned())]);
        let (answering, _receiver, _) = service();
        registry.set("b", FamilyState::Ready(answering));
        assert!(registry.is_ready(), "one answers, though another failed");
        registry.set("c", FamilyState::Loading);
        assert!(!registry.is_ready());
        registry.remove("c");
        registry.start_draining();
        assert_eq!(registry.unready().as_deref(), Some("the server is stopping"));
        assert!(registry.is_draining());
    }

    #[tokio::test]
    async fn a_family_is_found_or_its_state_is_told() {
        let (answering, _receiver, _) = service();
        let states = [
            ("loading".to_owned(), FamilyState::Loading),
            ("ready".to_owned(), FamilyState::Ready(answering)),
            ("gone".to_owned(), FamilyState::Unloaded),
            ("broken".to_owned(), FamilyState::Failed { reason: "no weights".to_owned() }),
        ];
        let registry = Registry::new(states);
        assert!(registry.family("ready").is_ok());
        for (name, expected) in [
            ("loading", "it is loading"),
            ("gone", "it is unloaded"),
            ("broken", "it did not load: no weights"),
            ("other", "broken, gone, loading, ready"),
        ] {
            let error = registry.family(name).expect_err(name).to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
