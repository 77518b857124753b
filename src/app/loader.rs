//! Families of the pool's folder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{
    AppError, Machine, PoolConfig, Profiles, idle::Refining, profiles::Known,
    progress::LoadProgress,
};
use crate::{
    assembly::Family,
    family::{MANIFEST_FILE, ModuleId},
    fit::IdleMeasuring,
    offer::{Profile, QualityRecords, SHIPPED_FILE, ShippedProfiles},
    pool::{FamilyWriter, Stamps},
    serve::{LoadedFamily, Loader},
    tensor::chain,
};

/// Loader of families from the pool's folder; estimates the costs of modules without a profile.
pub(super) struct PoolLoader {
    pub(super) pool: PoolConfig,
    pub(super) machine: Machine,
    /// Fraction by which predictions are made larger.
    pub(super) margin: f64,
    pub(super) stop: CancellationToken,
}

impl PoolLoader {
    /// Returns the costs from other machines: those of the file that the settings name, or of the
    /// one in the pool's folder. The latter is optional, so a fault of it is a warning.
    fn shipped(&self) -> Result<ShippedProfiles, AppError> {
        if let Some(path) = &self.pool.profile {
            return Ok(ShippedProfiles::read(path)?);
        }
        let path = self.pool.folder.join(SHIPPED_FILE);
        Ok(ShippedProfiles::read(&path).unwrap_or_else(|error| {
            tracing::warn!("costs of other machines are not used: {}", chain(&error));
            ShippedProfiles::default()
        }))
    }

    /// Returns the measurements of the modules `estimated`, to be made in idle time.
    fn refining(
        &self,
        family: &Arc<Family>,
        profile: &Profile,
        estimated: Vec<ModuleId>,
    ) -> Refining {
        let measuring = IdleMeasuring::new(family.clone(), profile.clone(), estimated);
        let Machine { key, cache, .. } = &self.machine;
        Refining::new(measuring, key.clone(), cache.clone())
    }

    fn try_load(&self, name: &str) -> Result<LoadedFamily, AppError> {
        if self.stop.is_cancelled() {
            return Err(AppError::Stopping);
        }
        let family = family_of(&self.pool.folder, name)?;
        let progress = LoadProgress::new(name, &self.stop);
        let profiles = Profiles { machine: &self.machine, progress: &progress };
        let Known { profile, estimated } = profiles.at_once(&family, &self.shipped()?)?;
        let quality = quality_of(&family)?;
        let pins: Vec<&str> = pins_of(&self.pool.pins, name).collect();
        let refining = (!estimated.is_empty()).then(|| self.refining(&family, &profile, estimated));
        let mut loaded = LoadedFamily::new(family, profile, quality, self.margin)?;
        if let Some(refining) = refining {
            loaded = loaded.with_idle_work(Box::new(refining));
        }
        loaded.pin(&pins).map_err(|reason| AppError::PinnedModule { reason })
    }
}

impl Loader for PoolLoader {
    fn names(&self) -> Result<Vec<String>, String> {
        found_families(&self.pool.folder).map_err(|error| chain(&error))
    }

    fn stamps(&self, name: &str) -> Option<Stamps> {
        Stamps::take(&self.pool.folder.join(name)).ok()
    }

    fn load(&self, name: &str) -> Result<LoadedFamily, String> {
        self.try_load(name).map_err(|error| chain(&error))
    }
}

/// Loads the family `name` of `pool`.
///
/// # Errors
///
/// Fails when `name` is not the name of a folder, or the family does not load.
pub fn family_of(pool: &Path, name: &str) -> Result<Arc<Family>, AppError> {
    let folder = folder_of(pool, name)?;
    let wrap = |error| AppError::Family { name: name.to_owned(), source: Box::new(error) };
    Family::load(&folder).map(Arc::new).map_err(wrap)
}

/// Returns a writer of the folder of the family `name` of `pool`.
///
/// # Errors
///
/// Fails when `name` is not the name of a folder, or another process writes there.
pub fn writer_of(pool: &Path, name: &str) -> Result<FamilyWriter, AppError> {
    let folder = folder_of(pool, name)?;
    let wrap = |source| AppError::Writer { name: name.to_owned(), source };
    FamilyWriter::begin(&folder).map_err(wrap)
}

/// Reads the measured qualities of the plans of `family`.
///
/// # Errors
///
/// Fails when the file is there, but cannot be read.
pub fn quality_of(family: &Family) -> Result<QualityRecords, AppError> {
    Ok(QualityRecords::read(&family.folder.join(&family.manifest.quality.file))?)
}

/// Returns the names of the folders of `pool` that hold a manifest, sorted. Hidden folders are not
/// families.
///
/// # Errors
///
/// Fails when the folder cannot be read or holds none.
pub fn family_names(pool: &Path) -> Result<Vec<String>, AppError> {
    let names = found_families(pool)?;
    match names.is_empty() {
        true => Err(AppError::EmptyPool { folder: pool.to_owned() }),
        false => Ok(names),
    }
}

/// Checks that each of `pins`, as FAMILY/NAME, names one of `families`.
///
/// # Errors
///
/// Fails with the first pin that does not.
pub fn check_pins(pins: &[String], families: &[String]) -> Result<(), AppError> {
    let is_of = |pin: &str, family: &String| {
        pin.strip_prefix(family.as_str()).is_some_and(|rest| rest.starts_with('/'))
    };
    match pins.iter().find(|pin| !families.iter().any(|family| is_of(pin, family))) {
        Some(pin) => Err(AppError::PinnedFamily { pin: pin.clone() }),
        None => Ok(()),
    }
}

fn folder_of(pool: &Path, name: &str) -> Result<PathBuf, AppError> {
    let is_plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    match is_plain {
        true => Ok(pool.join(name)),
        false => Err(AppError::FamilyName { name: name.to_owned() }),
    }
}

fn found_families(pool: &Path) -> Result<Vec<String>, AppError> {
    let entries = std::fs::read_dir(pool)
        .map_err(|source| AppError::Pool { folder: pool.to_owned(), source })?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join(MANIFEST_FILE).is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// Returns the names in `pins` that belong to `family`, without the family's name.
fn pins_of<'a>(pins: &'a [String], family: &str) -> impl Iterator<Item = &'a str> {
    let own = move |pin: &'a String| {
        let (of, name) = pin.split_once('/')?;
        (of == family).then_some(name)
    };
    pins.iter().filter_map(own)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn families_are_folders_with_a_manifest_that_are_not_hidden() {
        let pool = tempfile::tempdir().expect("a folder");
        for name in ["b", "a", ".import-x", "no-manifest"] {
            fs::create_dir(pool.path().join(name)).expect("created");
        }
        for name in ["a", "b", ".import-x"] {
            fs::write(pool.path().join(name).join(MANIFEST_FILE), "").expect("written");
        }
        fs::write(pool.path().join("profile.json"), "{}").expect("written");
        assert_eq!(family_names(pool.path()).expect("names"), ["a", "b"]);
    }
}
