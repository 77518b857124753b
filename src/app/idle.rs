//! Measuring a served family's modules in idle time.

use std::path::PathBuf;

use crate::{
    fit::IdleMeasuring,
    offer::{MachineKey, Profile, ProfileCache, module_digest},
    runtime::Executor,
    serve::{IdleTurn, IdleWork},
    tensor::chain,
};

/// Measurements of a family whose costs were estimates.
#[derive(Debug)]
pub(super) struct Refining {
    pub(super) measuring: IdleMeasuring,
    pub(super) key: MachineKey,
    /// Folder in which the costs are kept; `None` if there is none.
    pub(super) cache: Option<PathBuf>,
}

impl IdleWork for Refining {
    fn turn(&mut self, executor: &Executor, is_quiet: &dyn Fn() -> bool) -> IdleTurn {
        let family = &self.measuring.family().manifest.name.clone();
        if let Err(error) = self.measuring.turn(executor, is_quiet) {
            tracing::warn!(family, "measuring in idle time ends: {}", chain(&error));
            return IdleTurn::Failed;
        }
        if !self.measuring.is_done() {
            return IdleTurn::More;
        }
        match self.measuring.profile() {
            Ok(profile) => {
                let measured = self.cache_of(&profile);
                let kept = self.cache.as_deref().map(|folder| measured.write(folder));
                if let Some(Err(error)) = kept {
                    tracing::warn!(family, "measured costs cannot be kept: {}", chain(&error));
                }
                IdleTurn::Done(Box::new(profile))
            }
            Err(error) => {
                tracing::warn!(family, "measured costs are not used: {}", chain(&error));
                IdleTurn::Failed
            }
        }
    }
}

impl Refining {
    /// Returns the costs of the measured modules. They still count as estimates, since batches were
    /// not measured.
    fn cache_of(&self, profile: &Profile) -> ProfileCache {
        let mut cache = ProfileCache::empty(self.key.clone());
        for id in self.measuring.measured() {
            let digest = module_digest(self.measuring.family(), id);
            if let Some((digest, module)) = digest.zip(profile.module(id)) {
                cache.estimated.insert(digest.clone());
                cache.modules.insert(digest, module.clone());
            }
        }
        cache
    }
}
