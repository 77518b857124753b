//! Setup that the commands share: the runtime, families and profiles.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{args::Common, progress::Bars};
use crate::{
    assembly::Family,
    family::MANIFEST_FILE,
    fit::{FitError, ProfileOptions, measure_profile},
    offer::{MachineKey, Profile, ProfileCache, QualityRecords},
    pool::FamilyWriter,
    runtime::{Executor, Runtime, RuntimeConfig, find_library},
    tensor::give_back_freed_memory,
};

/// The runtime, and the key that identifies this machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) runtime: Runtime,
    pub(super) key: MachineKey,
    /// Folder of profiles; `None` if there is no folder for them.
    pub(super) cache: Option<PathBuf>,
}

/// A family's profile, and the error if it was not saved.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) profile: Profile,
    pub(super) unkept: Option<anyhow::Error>,
}

/// Starts the runtime with the options in `common`.
pub(super) fn machine(common: &Common) -> anyhow::Result<Machine> {
    let from_environment = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let executable = std::env::current_exe().unwrap_or_default();
    let folders = [std::env::current_dir().unwrap_or_default(), executable];
    let library =
        find_library(common.onnxruntime.as_deref(), from_environment.as_deref(), &folders)?;
    let spin = !common.no_spin;
    let key = MachineKey::of_this_machine(&library, common.threads, spin)?;
    let memory_limit = common.memory_limit.map(|limit| limit.0);
    let config = RuntimeConfig { library, num_threads: key.num_threads, spin, memory_limit };
    let runtime = Runtime::start(&config)?;
    let cache = common.cache.clone().or_else(default_cache);
    Ok(Machine { runtime, key, cache })
}

/// Loads the family `name` of the pool.
pub(super) fn family(common: &Common, name: &str) -> anyhow::Result<Arc<Family>> {
    let folder = family_folder(common, name)?;
    Ok(Arc::new(Family::load(&folder).with_context(|| format!("family `{name}`"))?))
}

/// Returns a writer of the folder of the family `name` of the pool.
pub(super) fn writer(common: &Common, name: &str) -> anyhow::Result<FamilyWriter> {
    let folder = family_folder(common, name)?;
    FamilyWriter::begin(&folder).with_context(|| format!("family `{name}`"))
}

fn family_folder(common: &Common, name: &str) -> anyhow::Result<PathBuf> {
    let is_plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    anyhow::ensure!(is_plain, "`{name}` is no family name: it names a folder of the pool");
    Ok(common.pool.join(name))
}

/// Returns the profile of `family`; measures the modules that the machine's cache lacks.
pub(super) fn profile(machine: &Machine, family: &Arc<Family>) -> anyhow::Result<Profile> {
    profile_until(machine, family, &CancellationToken::new())
}

/// Returns the profile of `family` like [`profile`], but gives up when `stop` is cancelled.
pub(super) fn profile_until(
    machine: &Machine,
    family: &Arc<Family>,
    stop: &CancellationToken,
) -> anyhow::Result<Profile> {
    let cache = cached(machine);
    if let Ok(profile) = cache.profile_of(family) {
        return Ok(profile);
    }
    let mut unkept = None;
    let mut save = |cache: &ProfileCache| {
        unkept = keep(machine, cache).err();
        if stop.is_cancelled() { Err(FitError::Stopped) } else { Ok(()) }
    };
    let profile = measure(machine, family, cache, &mut save)?;
    if let Some(error) = unkept {
        // The family is served without a saved profile too.
        tracing::warn!("profiles cannot be kept, so they are measured at every start: {error:#}");
    }
    Ok(profile)
}

/// Returns the profile of `family`; measures all of its modules if `again` is true. Earlier
/// measurements stay in the cache until everything is measured.
pub(super) fn profile_again(
    machine: &Machine,
    family: &Arc<Family>,
    again: bool,
) -> anyhow::Result<Measured> {
    let mut cache = cached(machine);
    if again {
        cache.forget(family);
    }
    let (mut last, mut unkept) = (None, None);
    let mut save = |cache: &ProfileCache| {
        match again {
            true => last = Some(cache.clone()),
            false => unkept = keep(machine, cache).err(),
        }
        Ok(())
    };
    let profile = measure(machine, family, cache, &mut save)?;
    let unkept = last.map_or(unkept, |cache| keep(machine, &cache).err());
    Ok(Measured { profile, unkept })
}

/// Returns this machine's cache. It is empty if there is no folder, or, with a warning, if it
/// cannot be read.
fn cached(machine: &Machine) -> ProfileCache {
    let empty = || ProfileCache::empty(machine.key.clone());
    let Some(folder) = &machine.cache else { return empty() };
    ProfileCache::read(folder, machine.key.clone()).unwrap_or_else(|error| {
        let error = anyhow::Error::new(error);
        tracing::warn!("the cache of profiles is broken; measuring anew: {error:#}");
        empty()
    })
}

/// Saves `cache` for the next start.
fn keep(machine: &Machine, cache: &ProfileCache) -> anyhow::Result<()> {
    let folder = machine.cache.as_ref().context(
        "there is no folder for profiles: give one with --cache, or set HOME or XDG_CACHE_HOME",
    )?;
    Ok(cache.write(folder)?)
}

/// Measures the modules that `cache` lacks, and returns the profile of `family`.
fn measure(
    machine: &Machine,
    family: &Arc<Family>,
    mut cache: ProfileCache,
    save: &mut dyn FnMut(&ProfileCache) -> Result<(), FitError>,
) -> anyhow::Result<Profile> {
    tracing::info!(family = family.manifest.name, "measuring modules on this machine, once");
    let mut executor = Executor::new(machine.runtime.clone(), family.clone());
    let options = ProfileOptions::default();
    measure_profile(&mut executor, &options, &mut cache, &Bars::default(), save)?;
    // Large batches were measured; serving needs far less memory.
    drop(executor);
    give_back_freed_memory();
    cache.profile_of(family).map_err(|_| anyhow::anyhow!("modules are left without a profile"))
}

/// Reads the measured qualities of the plans of `family`.
pub(super) fn quality(family: &Family) -> anyhow::Result<QualityRecords> {
    Ok(QualityRecords::read(&family.folder.join(&family.manifest.quality.file))?)
}

fn default_cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(base.join("tessera"))
}

/// Returns the names of the pool's folders that hold a manifest, sorted; fails if there are none.
pub(super) fn family_names(pool: &Path) -> anyhow::Result<Vec<String>> {
    let names = found_families(pool)?;
    anyhow::ensure!(!names.is_empty(), "the pool `{}` holds no family.toml", pool.display());
    Ok(names)
}

/// Returns the names of the pool's folders that hold a manifest, sorted.
pub(super) fn found_families(pool: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(pool)
        .with_context(|| format!("the pool `{}` cannot be read", pool.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join(MANIFEST_FILE).is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}
