//! Measured module costs: the cache that belongs to a machine, and what a family's modules cost.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FitError, write_atomically};
use crate::{
    arch::Family,
    family::ModuleId,
    plan::{Grid, PlanError},
};

/// What makes latencies comparable: the processor, the threads and the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineKey {
    /// The processor's name and its number of cores.
    pub processor: String,
    /// The threads of the runtime's pool.
    pub num_threads: usize,
    /// Whether idle threads of the pool spin.
    pub spin: bool,
    /// The runtime library's digest.
    pub runtime: String,
}

/// What a module costs by batch and length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleProfile {
    /// The median time of a run in seconds.
    pub latency_seconds: Grid,
    /// The largest sum of live activations in bytes.
    pub activation_bytes: Grid,
}

/// The measured modules of one machine, by digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileCache {
    /// The machine.
    pub machine: MachineKey,
    /// The modules by digest of their networks.
    pub modules: BTreeMap<String, ModuleProfile>,
}

/// What each module of a family costs; `None` for the identity, which costs nothing.
#[derive(Debug, Clone)]
pub struct Profile {
    modules: Vec<Option<ModuleProfile>>,
}

impl MachineKey {
    /// Describes this machine.
    ///
    /// # Errors
    ///
    /// Fails when the runtime library cannot be read.
    pub fn of_this_machine(
        library: &Path,
        num_threads: usize,
        spin: bool,
    ) -> Result<Self, FitError> {
        let wrap = |source| FitError::File { path: library.to_owned(), source };
        let runtime = crate::tensor::MappedFile::open(library).map_err(wrap)?.sha256();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let name = std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("model name"))?;
                Some(line.split_once(':')?.1.trim().to_owned())
            })
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let num_threads = if num_threads == 0 { cores } else { num_threads };
        Ok(Self { processor: format!("{name}, {cores} cores"), num_threads, spin, runtime })
    }

    /// Returns the cache file of this machine in `folder`.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let key = serde_json::to_string(self).unwrap_or_default();
        folder.join(format!("profile-{}.json", &digest(key.as_bytes())[..16]))
    }
}

impl ProfileCache {
    /// Returns a cache in which nothing is measured.
    pub fn empty(machine: MachineKey) -> Self {
        Self { machine, modules: BTreeMap::new() }
    }

    /// Reads the cache of `machine` in `folder`; empty where there is none.
    ///
    /// # Errors
    ///
    /// Fails when the file is there but does not parse.
    pub fn read(folder: &Path, machine: MachineKey) -> Result<Self, FitError> {
        let path = machine.file(folder);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::empty(machine));
            }
            Err(source) => return Err(FitError::File { path, source }),
        };
        serde_json::from_str(&text)
            .map_err(|e| FitError::Malformed { path, message: e.to_string() })
    }

    /// Writes the cache into `folder`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), FitError> {
        let text = serde_json::to_string(self).unwrap_or_default();
        write_atomically(&self.machine.file(folder), text.as_bytes())
    }

    /// Returns the profile of `family`, or the modules that have not been measured.
    ///
    /// # Errors
    ///
    /// Returns the missing modules.
    pub fn profile_of(&self, family: &Family) -> Result<Profile, Vec<ModuleId>> {
        let mut modules = Vec::new();
        let mut missing = Vec::new();
        for index in 0..family.graph.modules().len() {
            let id = ModuleId(index);
            let module = match module_digest(family, id) {
                None => None,
                Some(digest) => self.modules.get(&digest).cloned().or_else(|| {
                    missing.push(id);
                    None
                }),
            };
            modules.push(module);
        }
        if missing.is_empty() { Ok(Profile { modules }) } else { Err(missing) }
    }
}

impl Profile {
    /// Returns what module `id` costs, or `None` where it is the identity.
    pub fn module(&self, id: ModuleId) -> Option<&ModuleProfile> {
        self.modules.get(id.0).and_then(Option::as_ref)
    }

    /// Returns the latency of module `id`, to be learned; `None` where it is the identity.
    pub fn latency_mut(&mut self, id: ModuleId) -> Option<&mut Grid> {
        let module = self.modules.get_mut(id.0).and_then(Option::as_mut);
        module.map(|module| &mut module.latency_seconds)
    }

    /// Returns the latency of modules that run one after another.
    ///
    /// # Errors
    ///
    /// Fails where none of them costs anything.
    pub fn latency_of(&self, path: impl IntoIterator<Item = ModuleId>) -> Result<Grid, PlanError> {
        let modules = path.into_iter().filter_map(|id| self.module(id));
        Grid::sum(modules.map(|module| &module.latency_seconds))
    }

    /// Returns the activations of the modules that are not the identity.
    pub fn activations(&self) -> impl Iterator<Item = (ModuleId, Grid)> {
        let modules = self.modules.iter().enumerate();
        modules.filter_map(|(index, module)| {
            Some((ModuleId(index), module.as_ref()?.activation_bytes.clone()))
        })
    }

    /// Returns the largest batch that was measured; larger ones run in chunks of it.
    pub fn max_batch(&self) -> usize {
        let grids = self.modules.iter().flatten().map(|module| &module.latency_seconds);
        grids.filter_map(|grid| grid.batches().last().copied()).min().unwrap_or(1)
    }

    /// Returns the lengths that were measured.
    pub fn token_knots(&self) -> &[usize] {
        self.modules.iter().flatten().next().map_or(&[], |m| m.latency_seconds.tokens())
    }
}

/// Version of how modules are measured: what another one measured is measured again.
const VERSION: u8 = 2;

/// Returns the digest under which module `id` is cached, or `None` where it is the identity.
pub(super) fn module_digest(family: &Family, id: ModuleId) -> Option<String> {
    family.fingerprint(id).map(|mut fingerprint| {
        fingerprint.push(VERSION);
        digest(&fingerprint)
    })
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
