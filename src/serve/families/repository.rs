//! Loading, reloading and unloading families while others are served.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    engine::{Ahead, Engine},
    loaded::LoadedFamily,
    registry::{FamilyState, Registry},
};
use crate::{pool::Stamps, serve::error::ServeError};

/// Source of the families of a pool. Its methods take long and are called on blocking threads.
pub trait Loader: Send + Sync {
    /// Returns the names of the pool's families.
    ///
    /// # Errors
    ///
    /// Fails with the reason when the pool cannot be read.
    fn names(&self) -> Result<Vec<String>, String>;

    /// Loads the family `name`.
    ///
    /// # Errors
    ///
    /// Fails with the reason when the family cannot be served.
    fn load(&self, name: &str) -> Result<LoadedFamily, String>;

    /// Returns the current stamps of the family `name`, or `None` if its files cannot be read.
    fn stamps(&self, name: &str) -> Option<Stamps>;
}

/// Stamps of the pool's files that calls of [`Repository::follow`] have seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Stamps at the last call, by family.
    last: HashMap<String, Stamps>,
    /// Stamps at the last load that a call started, by family.
    tried: HashMap<String, Stamps>,
}

/// Families of a pool, of which some are served.
pub struct Repository {
    registry: Arc<Registry>,
    engine: Engine,
    loader: Box<dyn Loader>,
    /// Lock that is held while a family is loaded or unloaded, so that two calls do not cross.
    turn: Mutex<()>,
}

impl Repository {
    /// Creates a repository that manages `registry`. `engine` serves the families that `loader`
    /// loads.
    pub fn new(registry: Arc<Registry>, engine: Engine, loader: Box<dyn Loader>) -> Self {
        Self { registry, engine, loader, turn: Mutex::new(()) }
    }

    /// Returns the registry of the offered families.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Returns the names of the pool's families and of all other offered families.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.loader.names().unwrap_or_else(|reason| {
            tracing::warn!(reason, "the pool cannot be read");
            Vec::new()
        });
        names.extend(self.registry.families().into_iter().map(|(name, _)| name));
        names.sort();
        names.dedup();
        names
    }

    /// Loads the families of `names` one after another, except those that someone loads or unloads
    /// before their turn. Stops when the server does. The log names those that do not load. Modules
    /// are loaded ahead and measured once every family is loaded.
    pub fn load_all(&self, names: &[String]) {
        for name in names {
            self.registry.set(name, FamilyState::Loading);
        }
        let mut ahead = Vec::new();
        for name in names {
            if self.registry.is_draining() {
                return;
            }
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(self.registry.state(name), Some(FamilyState::Loading)) {
                // The log has the error, and so does the registry.
                ahead.extend(self.load_in_turn(name).ok());
            }
        }
        tracing::info!("every family is loaded or failed");
        ahead.into_iter().for_each(|ahead| self.engine.work_ahead(ahead));
    }

    /// Loads or reloads the family `name`. Requests that run on the old version end on it. If the
    /// load fails, the old version is still served. Takes long; must not be called on an async
    /// thread.
    ///
    /// # Errors
    ///
    /// Fails when the pool has no such family, or the family cannot be loaded.
    pub fn load(&self, name: &str) -> Result<(), ServeError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.load_in_turn(name).map(|ahead| self.engine.work_ahead(ahead))
    }

    /// Loads the family `name` while the caller holds the turn. Returns the work that is to begin
    /// when no other family is being loaded.
    fn load_in_turn(&self, name: &str) -> Result<Ahead, ServeError> {
        self.forget(name);
        let known = self.names();
        if !known.iter().any(|other| other == name) {
            return Err(ServeError::UnknownFamily {
                name: name.chars().take(100).collect(),
                known: known.join(", "),
            });
        }
        let is_stopped = || self.registry.is_draining();
        let serve = |loaded| self.engine.serve(loaded, &is_stopped);
        let load = || self.loader.load(name).map(serve);
        // A panic is about this family; the others go on, and it may be loaded again.
        let loaded = catch_unwind(AssertUnwindSafe(load));
        match loaded.unwrap_or_else(|_| Err("loading it panicked".to_owned())) {
            Ok((service, ahead)) => {
                tracing::info!(family = name, version = service.digest(), "ready");
                self.registry.set(name, FamilyState::Ready(service));
                Ok(ahead)
            }
            Err(reason) => {
                tracing::error!(family = name, "not loaded: {reason}");
                if !matches!(self.registry.state(name), Some(FamilyState::Ready(_))) {
                    let reason = reason.clone();
                    self.registry.set(name, FamilyState::Failed { reason });
                }
                Err(ServeError::LoadFailed { name: name.to_owned(), reason })
            }
        }
    }

    /// Removes the family `name` if the pool no longer has it and it is not served.
    fn forget(&self, name: &str) {
        let is_served = || matches!(self.registry.state(name), Some(FamilyState::Ready(_)));
        let is_gone = |names: &Vec<String>| !names.iter().any(|other| other == name);
        if self.loader.names().is_ok_and(|names| is_gone(&names)) && !is_served() {
            self.registry.remove(name);
        }
    }

    /// Follows the pool's folder. Loads families that are new or whose files have changed. Removes
    /// families that are gone, also if they failed or were unloaded. Files that change between two
    /// calls are left alone until they rest, so that no family is loaded while it is copied. Takes
    /// long; must not be called on an async thread.
    pub fn follow(&self, seen: &mut Seen) {
        let names = match self.loader.names() {
            Ok(names) => names,
            Err(reason) => return tracing::warn!(reason, "the pool cannot be read"),
        };
        seen.tried.retain(|name, _| names.contains(name));
        for name in &names {
            let Some(now) = self.loader.stamps(name) else {
                continue;
            };
            let is_at_rest = seen.last.insert(name.clone(), now.clone()).as_ref() == Some(&now);
            let is_tried = seen.tried.get(name) == Some(&now);
            if is_at_rest && !is_tried && self.is_outdated(name, &now) {
                tracing::info!(family = name, "the pool has new files of it");
                // The log has the error; these files are not tried again.
                drop(self.load(name));
                seen.tried.insert(name.clone(), now);
            }
        }
        for (name, state) in self.registry.families() {
            if !matches!(state, FamilyState::Loading) && !names.contains(&name) {
                tracing::info!(family = name, "the pool no longer has it");
                self.registry.remove(&name);
            }
        }
    }

    /// Returns whether the family `name`, whose files have the stamps `now`, should be loaded. A
    /// family that someone unloaded should not.
    fn is_outdated(&self, name: &str, now: &Stamps) -> bool {
        match self.registry.state(name) {
            Some(FamilyState::Ready(service)) => !service.stamps().is_same_version(now),
            Some(FamilyState::Failed { .. }) | None => true,
            Some(FamilyState::Loading | FamilyState::Unloaded) => false,
        }
    }

    /// Takes the family `name` out of service; requests that run on it end on it.
    ///
    /// # Errors
    ///
    /// Fails when no such family is offered.
    pub fn unload(&self, name: &str) -> Result<(), ServeError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.registry.state(name).is_none() {
            let broken = ServeError::Broken { what: "a family without a state is served" };
            return Err(self.registry.family(name).err().unwrap_or(broken));
        }
        self.registry.set(name, FamilyState::Unloaded);
        tracing::info!(family = name, "unloaded");
        Ok(())
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Repository")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;
