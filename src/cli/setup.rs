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
        FitError, MachineKey, Profile, ProfileCache, ProfileOptions, QualityRecords,
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
    pub(super) cache: PathBuf,
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
    let cache = common.cache.clone().or_else(default_cache).context(
        "there is no folder for profiles: give one with --cache, or set HOME or XDG_CACHE_HOME",
    )?;
    Ok(Machine { runtime, key, cache })
}

/// Loads the family `name` of the pool.
pub(super) fn family(common: &Common, name: &str) -> anyhow::Result<Arc<Family>> {
    let is_plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
    anyhow::ensure!(is_plain, "`{name}` is no family name: it names a folder of the pool");
    let folder = common.pool.join(name);
    Ok(Arc::new(Family::load(&folder).with_context(|| format!("family `{name}`"))?))
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
    let mut cache = match ProfileCache::read(&machine.cache, machine.key.clone()) {
        Err(error @ FitError::Malformed { .. }) => {
            // Everything in it can be measured again, and is then written over it.
            tracing::warn!(%error, "the cache of profiles is broken; measuring anew");
            ProfileCache::empty(machine.key.clone())
        }
        read => read?,
    };
    if let Ok(profile) = cache.profile_of(family) {
        return Ok(profile);
    }
    tracing::info!(family = family.manifest.name, "measuring modules on this machine, once");
    let mut executor = Executor::new(machine.runtime.clone(), family.clone());
    let mut save = |cache: &ProfileCache| -> Result<(), FitError> {
        cache.write(&machine.cache)?;
        if stop.is_cancelled() { Err(FitError::Stopped) } else { Ok(()) }
    };
    let options = ProfileOptions::default();
    measure_profile(&mut executor, &options, &mut cache, &Bars::default(), &mut save)?;
    // Large batches were measured; what is served next needs far less.
    drop(executor);
    give_back_freed_memory();
    cache.profile_of(family).map_err(|_| anyhow::anyhow!("modules are left without a profile"))
}

/// Reads the measured qualities of `family`.
pub(super) fn quality(family: &Family) -> anyhow::Result<QualityRecords> {
    Ok(QualityRecords::read(&quality_file(family))?)
}

/// Returns where the measured qualities of `family` lie.
pub(super) fn quality_file(family: &Family) -> PathBuf {
    family.folder.join(&family.manifest.quality.file)
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
