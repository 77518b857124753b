//! Profiles of families on this machine: read from the cache, or measured.

use std::sync::Arc;

use super::{AppError, Machine};
use crate::{
    assembly::Family,
    family::ModuleId,
    fit::{FitError, ProfileOptions, Progress, estimate_profile, measure_profile},
    offer::{OfferError, Profile, ProfileCache, ShippedProfile, ShippedProfiles},
    runtime::Executor,
    tensor::{chain, give_back_freed_memory},
};

/// The profiles of a machine.
#[derive(Clone, Copy)]
pub struct Profiles<'a> {
    /// Machine.
    pub machine: &'a Machine,
    /// Observer of long measurements.
    pub progress: &'a dyn Progress,
}

/// The costs of a family for serving.
#[derive(Debug)]
pub struct Known {
    /// Costs of all modules.
    pub profile: Profile,
    /// Modules whose latencies are estimates.
    pub estimated: Vec<ModuleId>,
}

/// A family's profile, and the error if it was not saved.
#[derive(Debug)]
pub struct Measured {
    /// Profile.
    pub profile: Profile,
    /// Error of saving it.
    pub unkept: Option<AppError>,
}

impl Profiles<'_> {
    /// Returns the costs of `family` for serving, within moments: from the machine's cache, or
    /// else from the costs in `shipped`, scaled by the speed of this machine, or else estimated
    /// from a few runs.
    ///
    /// # Errors
    ///
    /// Fails when modules do not run or the progress is stopped.
    pub fn at_once(
        &self,
        family: &Arc<Family>,
        shipped: &ShippedProfiles,
    ) -> Result<Known, AppError> {
        let mut cache = self.cached();
        let known = match cache.profile_of(family) {
            Ok(profile) => Some(profile),
            Err(_) => self.scaled(family, shipped, &mut cache)?,
        };
        let profile = match known {
            Some(profile) => profile,
            None => self.estimated(family, &mut cache)?,
        };
        Ok(Known { profile, estimated: cache.estimated_of(family) })
    }

    /// Adds to `cache` the modules that it lacks and the nearest machine in `shipped` has. Returns
    /// the profile of `family`, or `None` if a module is in neither.
    fn scaled(
        &self,
        family: &Family,
        shipped: &ShippedProfiles,
        cache: &mut ProfileCache,
    ) -> Result<Option<Profile>, AppError> {
        let Some(nearest) = shipped.nearest(&self.machine.key) else { return Ok(None) };
        let ratio = self.machine.calibration()?.as_secs_f64() / nearest.calibration_seconds;
        nearest.complete(cache, ratio).map_err(OfferError::from)?;
        let profile = cache.profile_of(family).ok();
        if profile.is_some() {
            tracing::info!(
                family = family.manifest.name,
                of = nearest.machine.processor,
                ratio = format!("{ratio:.2}"),
                "costs are those of another machine, scaled, until they are measured"
            );
        }
        Ok(profile)
    }

    /// Returns the profile of `family`; estimates the modules that `cache` lacks, and keeps them.
    fn estimated(
        &self,
        family: &Arc<Family>,
        cache: &mut ProfileCache,
    ) -> Result<Profile, AppError> {
        let mut executor = Executor::new(self.machine.runtime.clone(), family.clone());
        estimate_profile(&mut executor, cache, self.progress)?;
        drop(executor);
        give_back_freed_memory();
        if let Err(error) = self.keep(&cache.of(family)) {
            warn_unkept(&error);
        }
        cache.profile_of(family).map_err(|_| AppError::Unmeasured)
    }

    /// Returns what the machine's cache has of `family`, to be shipped to other machines. Estimates
    /// are not shipped.
    ///
    /// # Errors
    ///
    /// Fails when the machine's speed cannot be measured.
    pub fn shipped(&self, family: &Family) -> Result<ShippedProfile, AppError> {
        let calibration_seconds = self.machine.calibration()?.as_secs_f64();
        let mut cache = self.cached();
        cache.forget_estimates(family);
        let ProfileCache { machine, modules, proven, .. } = cache.of(family);
        Ok(ShippedProfile { machine, calibration_seconds, modules, proven })
    }

    /// Returns the profile of `family`; measures the modules that the machine's cache lacks.
    ///
    /// # Errors
    ///
    /// Fails when modules do not run or the progress is stopped.
    pub fn of(&self, family: &Arc<Family>) -> Result<Profile, AppError> {
        let cache = self.cached();
        if let Ok(profile) = cache.profile_of(family) {
            return Ok(profile);
        }
        let mut unkept = None;
        let mut save = |cache: &ProfileCache| {
            unkept = self.keep(cache).err();
            Ok(())
        };
        let profile = self.measure(family, cache, &mut save)?;
        if let Some(error) = unkept {
            // The family is served without a saved profile too.
            warn_unkept(&error);
        }
        Ok(profile)
    }

    /// Returns the profile of `family`; measures those modules that the cache lacks or has
    /// estimates of, or all of them if `again` is true. Earlier measurements stay in the cache
    /// until everything is measured.
    ///
    /// # Errors
    ///
    /// Fails when modules do not run.
    pub fn measured(&self, family: &Arc<Family>, again: bool) -> Result<Measured, AppError> {
        let mut cache = self.cached();
        match again {
            true => cache.forget(family),
            false => cache.forget_estimates(family),
        }
        let (mut last, mut unkept) = (None, None);
        let mut save = |cache: &ProfileCache| {
            match again {
                true => last = Some(cache.clone()),
                false => unkept = self.keep(cache).err(),
            }
            Ok(())
        };
        let profile = self.measure(family, cache, &mut save)?;
        let unkept = last.map_or(unkept, |cache| self.keep(&cache).err());
        Ok(Measured { profile, unkept })
    }

    /// Returns this machine's cache. It is empty if there is no folder, or, with a warning, if it
    /// cannot be read.
    fn cached(&self) -> ProfileCache {
        let Machine { key, cache, .. } = self.machine;
        let empty = || ProfileCache::empty(key.clone());
        let Some(folder) = cache else { return empty() };
        ProfileCache::read(folder, key.clone()).unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::warn!("the cache of profiles is broken; measuring again: {error}");
            empty()
        })
    }

    /// Saves `cache` for the next start.
    fn keep(&self, cache: &ProfileCache) -> Result<(), AppError> {
        let folder = self.machine.cache.as_ref().ok_or(AppError::NoCache)?;
        Ok(cache.write(folder)?)
    }

    /// Measures the modules that `cache` lacks, and returns the profile of `family`.
    fn measure(
        &self,
        family: &Arc<Family>,
        mut cache: ProfileCache,
        save: &mut dyn FnMut(&ProfileCache) -> Result<(), FitError>,
    ) -> Result<Profile, AppError> {
        tracing::info!(family = family.manifest.name, "measuring modules on this machine, once");
        let mut executor = Executor::new(self.machine.runtime.clone(), family.clone());
        let options = ProfileOptions::default();
        measure_profile(&mut executor, &options, &mut cache, self.progress, save)?;
        // Large batches were measured; serving needs far less memory.
        drop(executor);
        give_back_freed_memory();
        cache.profile_of(family).map_err(|_| AppError::Unmeasured)
    }
}

fn warn_unkept(error: &AppError) {
    let error = chain(error);
    tracing::warn!("profiles cannot be kept, so they are measured at every start: {error}");
}
