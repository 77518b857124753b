//! Measuring a served family's modules in idle time.

use std::path::PathBuf;

use crate::{
    fit::IdleMeasuring,
    offer::{MachineKey, Profile, ProfileCache, module_digest},
    runtime::{Competition, Executor},
    serve::{IdleTurn, IdleWork},
    tensor::chain,
};

/// Most measurements while others take much of the processor.
const ATTEMPTS: usize = 5;

/// Measurements of a family whose costs were estimates.
#[derive(Debug)]
pub(super) struct Refining {
    measuring: IdleMeasuring,
    key: MachineKey,
    /// Folder in which the costs are kept; `None` if there is none.
    cache: Option<PathBuf>,
    /// Competition since the measurements began; `None` before.
    competition: Option<Competition>,
    num_attempts: usize,
}

impl IdleWork for Refining {
    fn turn(&mut self, executor: &Executor, is_quiet: &dyn Fn() -> bool) -> IdleTurn {
        let family = &self.measuring.family().manifest.name.clone();
        self.competition.get_or_insert_with(Competition::begin);
        if let Err(error) = self.measuring.turn(executor, is_quiet) {
            tracing::warn!(family, "measuring in idle time ends: {}", chain(&error));
            return IdleTurn::Failed;
        }
        if !self.measuring.is_done() {
            return IdleTurn::More;
        }
        if self.is_to_be_repeated() {
            self.measuring.begin_again();
            return IdleTurn::More;
        }
        match self.measuring.profile() {
            Ok(profile) => {
                let kept = self.cache.as_deref().map(|folder| self.costs(&profile).write(folder));
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
    /// Creates measurements that are kept in the folder `cache` under `key`.
    pub(super) fn new(measuring: IdleMeasuring, key: MachineKey, cache: Option<PathBuf>) -> Self {
        Self { measuring, key, cache, competition: None, num_attempts: 0 }
    }

    /// Returns whether others took so much of the processor that everything is measured again.
    fn is_to_be_repeated(&mut self) -> bool {
        let others = self.competition.take().map_or(0.0, |competition| competition.share());
        self.num_attempts += 1;
        if others <= Competition::MOST {
            return false;
        }
        let is_repeated = self.num_attempts < ATTEMPTS;
        tracing::warn!(
            family = self.measuring.family().manifest.name,
            others = format!("{:.0} %", 100.0 * others),
            is_repeated,
            "costs were measured while others took much of the processor"
        );
        is_repeated
    }

    /// Returns the costs of the measured modules. They still count as estimates, since batches were
    /// not measured.
    fn costs(&self, profile: &Profile) -> ProfileCache {
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
