//! What the commands need before they start: the runtime, families, profiles.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{args::Common, progress::Bars};
use crate::{
    arch::Family,
    family::MANIFEST_FILE,
    fit::{
        FamilyWriter, FitError, MachineKey, Profile, ProfileCache, ProfileOptions, QualityRecords,
        measure_profile,
    },
    runtime::{Executor, Runtime, RuntimeConfig, find_library},
    tensor::give_back_freed_memory,
};

/// The runtime and what identifies this machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) runtime: Runtime,
    pub(super) key: MachineKey,
    /// Where profiles are kept; `None` where there is no folder for them.
    pub(super) cache: Option<PathBuf>,
}

/// A family's profile, and why it is not kept.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) profile: Profile,
    pub(super) unkept: Option<anyhow::Error>,
}

/// Starts the runtime as the options say.
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

/// Begins to write in the folder of the family `name` of the pool.
pub(super) fn writer(common: &Common, name: &str) -> anyhow::Result<FamilyWriter> {
    let folder = family_folder(common, name)?;
    FamilyWriter::begin(&folder).with_context(|| format!("family `{name}`"))
}

fn family_folder(common: &Common, name: &str) -> anyhow::Result<PathBuf> {
    let is_plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    anyhow::ensure!(is_plain, "`{name}` is no family name: it names a folder of the pool");
    Ok(common.pool.join(name))
}

/// Returns the profile of `family`, measuring what the machine's cache does not have.
pub(super) fn profile(machine: &Machine, family: &Arc<Family>) -> anyhow::Result<Profile> {
    profile_until(machine, family, &CancellationToken::new())
}

/// Like [`profile`], but gives up when `stop` is cancelled.
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
        // The family is served all the same.
        tracing::warn!("profiles cannot be kept, so they are measured at every start: {error:#}");
    }
    Ok(profile)
}

/// Returns the profile of `family`, measuring all of it where `again` is true. What was measured
/// before stays in the cache until everything is measured.
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

/// Returns this machine's cache, or an empty one with a warning if it cannot be read.
fn cached(machine: &Machine) -> ProfileCache {
    let empty = || ProfileCache::empty(machine.key.clone());
    let Some(folder) = &machine.cache else { return empty() };
    ProfileCache::read(folder, machine.key.clone()).unwrap_or_else(|error| {
        let error = anyhow::Error::new(error);
        tracing::warn!("the cache of profiles is broken; measuring anew: {error:#}");
        empty()
    })
}

/// Keeps what was measured for the next start.
fn keep(machine: &Machine, cache: &ProfileCache) -> anyhow::Result<()> {
    let folder = machine.cache.as_ref().context(
        "there is no folder for profiles: give one with --cache, or set HOME or XDG_CACHE_HOME",
    )?;
    Ok(cache.write(folder)?)
}

/// Measures what `cache` does not have.
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
    // Large batches were measured; what is served next needs far less.
    drop(executor);
    give_back_freed_memory();
    cache.profile_of(family).map_err(|_| anyhow::anyhow!("modules are left without a profile"))
}

/// Reads the measured qualities of `family`.
pub(super) fn quality(family: &Family) -> anyhow::Result<QualityRecords> {
    Ok(QualityRecords::read(&family.folder.join(&family.manifest.quality.file))?)
}

fn default_cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(base.join("tessera"))
}

/// Returns the folders of the pool that hold a manifest, by name; there must be one.
pub(super) fn family_names(pool: &Path) -> anyhow::Result<Vec<String>> {
    let names = found_families(pool)?;
    anyhow::ensure!(!names.is_empty(), "the pool `{}` holds no family.toml", pool.display());
    Ok(names)
}

/// Returns the folders of the pool that hold a manifest, by name.
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
