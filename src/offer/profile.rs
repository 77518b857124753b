//! Measured module costs: the cache of a machine, and the costs of a family's modules.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::{
    assembly::Family,
    family::ModuleId,
    module::Network,
    plan::{Grid, PlanError},
    pool::{PoolError, parse_json, write_atomically},
    tensor::{FileKind, hex, read_text},
};

/// Version of the cache file's format; the file's name depends on it.
const FORM: u32 = 2;

/// Conditions under which latencies are comparable: the processor, the threads and the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineKey {
    /// Name of the processor and its number of cores.
    pub processor: String,
    /// Number of threads of the runtime's pool.
    pub num_threads: usize,
    /// Whether idle threads of the pool spin.
    pub spin: bool,
    /// SHA-256 of the runtime library.
    pub runtime: String,
}

/// Costs of a module by batch and length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleProfile {
    /// Median time of a run in seconds.
    pub latency_seconds: Grid,
    /// Largest sum of live activations in bytes.
    pub activation_bytes: Grid,
}

/// Measured modules of one machine, by digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileCache {
    /// Machine on which the modules were measured.
    pub machine: MachineKey,
    /// Costs of modules by the digest of their networks.
    pub modules: BTreeMap<String, ModuleProfile>,
    /// Digests of the networks from outside whose rows were proven to be independent.
    #[serde(default)]
    pub proven: BTreeSet<String>,
    /// Digests of the modules whose latencies are not exact: scaled from another machine's,
    /// computed from a few runs, or measured while others took much of the processor.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub estimated: BTreeSet<String>,
}

/// Content of the cache file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<'t> {
    /// SHA-256 of the cache's text.
    sha256: String,
    #[serde(borrow)]
    cache: &'t RawValue,
}

/// Costs of a family's modules; `None` for the identity, which costs nothing.
#[derive(Debug, Clone)]
pub struct Profile {
    modules: Vec<Option<ModuleProfile>>,
}

impl MachineKey {
    /// Returns the key of this machine.
    ///
    /// # Errors
    ///
    /// Fails when the runtime library cannot be read.
    pub fn of_this_machine(
        library: &Path,
        num_threads: usize,
        spin: bool,
    ) -> Result<Self, PoolError> {
        let wrap = |reason| PoolError::File { path: library.to_owned(), reason };
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

    /// Returns the path of this machine's cache file in `folder`.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let key = serde_json::to_string(self).unwrap_or_default();
        let key = format!("{FORM} {key}");
        folder.join(format!("profile-{}.json", &digest(key.as_bytes())[..16]))
    }
}

impl ProfileCache {
    /// Creates an empty cache.
    pub fn empty(machine: MachineKey) -> Self {
        Self {
            machine,
            modules: BTreeMap::new(),
            proven: BTreeSet::new(),
            estimated: BTreeSet::new(),
        }
    }

    /// Reads the cache of `machine` in `folder`, or creates an empty one if the file is missing.
    ///
    /// # Errors
    ///
    /// Fails when there is something else in its place, and when it is not as it was written.
    pub fn read(folder: &Path, machine: MachineKey) -> Result<Self, PoolError> {
        let path = machine.file(folder);
        let text = match read_text(&path, FileKind::Records) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::empty(machine));
            }
            Err(reason) => return Err(PoolError::File { path, reason }),
        };
        let malformed = |message: String| PoolError::Malformed { path: path.clone(), message };
        let sealed: Sealed<'_> = parse_json(&path, &text)?;
        if digest(sealed.cache.get().as_bytes()) != sealed.sha256 {
            return Err(malformed("its sha256 is another: truncated or altered".into()));
        }
        let cache: Self = parse_json(&path, sealed.cache.get())?;
        if cache.machine != machine {
            return Err(malformed(format!("it is of another machine, {:?}", cache.machine)));
        }
        Ok(cache)
    }

    /// Writes the cache into `folder`, keeping the modules that other processes have measured and
    /// the networks that they have proven.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), PoolError> {
        let mut all = Self::read(folder, self.machine.clone())
            .unwrap_or_else(|_| Self::empty(self.machine.clone()));
        all.estimated.retain(|digest| !self.modules.contains_key(digest));
        all.estimated.extend(self.estimated.iter().cloned());
        all.modules.extend(self.modules.clone());
        all.proven.extend(self.proven.iter().cloned());
        let path = self.machine.file(folder);
        let malformed = |error: serde_json::Error| PoolError::malformed(&path, &error);
        let text = serde_json::to_string(&all).map_err(malformed)?;
        let cache: &RawValue = serde_json::from_str(&text).map_err(malformed)?;
        let sealed = Sealed { sha256: digest(text.as_bytes()), cache };
        let text = serde_json::to_string(&sealed).map_err(malformed)?;
        write_atomically(&path, text.as_bytes())
    }

    /// Returns a cache of what this one has of `family`.
    #[must_use]
    pub fn of(&self, family: &Family) -> Self {
        let modules = (0..family.graph.modules().len()).filter_map(|index| {
            let digest = module_digest(family, ModuleId(index))?;
            let module = self.modules.get(&digest)?.clone();
            Some((digest, module))
        });
        let networks =
            (0..family.num_networks()).map(|index| network_digest(family.network(index)));
        let proven = networks.filter(|digest| self.proven.contains(digest)).collect();
        let modules: BTreeMap<String, ModuleProfile> = modules.collect();
        let estimated = self.estimated.iter().filter(|digest| modules.contains_key(*digest));
        let estimated = estimated.cloned().collect();
        Self { machine: self.machine.clone(), modules, proven, estimated }
    }

    /// Returns the modules of `family` whose latencies are estimates.
    pub fn estimated_of(&self, family: &Family) -> Vec<ModuleId> {
        let modules = (0..family.graph.modules().len()).map(ModuleId);
        let is_estimated = |id: &ModuleId| {
            module_digest(family, *id).is_some_and(|digest| self.estimated.contains(&digest))
        };
        modules.filter(is_estimated).collect()
    }

    /// Removes the modules of `family` whose latencies are estimates.
    pub fn forget_estimates(&mut self, family: &Family) {
        for digest in self.estimated_of(family).iter().filter_map(|id| module_digest(family, *id)) {
            self.estimated.remove(&digest);
            self.modules.remove(&digest);
        }
    }

    /// Removes the modules of `family`.
    pub fn forget(&mut self, family: &Family) {
        for index in 0..family.graph.modules().len() {
            if let Some(digest) = module_digest(family, ModuleId(index)) {
                self.modules.remove(&digest);
                self.estimated.remove(&digest);
            }
        }
    }

    /// Returns the profile of `family`. If rows run one at a time, a larger batch costs the sum of
    /// its rows.
    ///
    /// # Errors
    ///
    /// Returns the modules that are not measured or that have an unproven network.
    pub fn profile_of(&self, family: &Family) -> Result<Profile, Vec<ModuleId>> {
        let known = |id, digest: &String| {
            let module = self.modules.get(digest).filter(|_| self.is_proven(family, id))?;
            Some(if family.is_one_by_one() { module.of_one() } else { module.clone() })
        };
        let mut modules = Vec::new();
        let mut missing = Vec::new();
        for index in 0..family.graph.modules().len() {
            let id = ModuleId(index);
            let module = match module_digest(family, id) {
                None => None,
                Some(digest) => known(id, &digest).or_else(|| {
                    missing.push(id);
                    None
                }),
            };
            modules.push(module);
        }
        if missing.is_empty() { Ok(Profile { modules }) } else { Err(missing) }
    }

    /// Returns whether each network of module `id` was built here or has been proven.
    fn is_proven(&self, family: &Family, id: ModuleId) -> bool {
        let networks = family.networks_of(id).into_iter().map(|index| family.network(index));
        let mut unproven = networks.filter(|network| network.needs_proof());
        unproven.all(|network| self.proven.contains(&network_digest(network)))
    }
}

impl ModuleProfile {
    /// Returns the module's costs if rows run one at a time.
    fn of_one(&self) -> Self {
        Self {
            latency_seconds: self.latency_seconds.of_first_batch(),
            activation_bytes: self.activation_bytes.of_first_batch(),
        }
    }
}

impl Profile {
    /// Returns the costs of module `id`, or `None` if it is the identity.
    pub fn module(&self, id: ModuleId) -> Option<&ModuleProfile> {
        self.modules.get(id.0).and_then(Option::as_ref)
    }

    /// Returns the latency of module `id` for updates, or `None` if it is the identity.
    pub fn latency_mut(&mut self, id: ModuleId) -> Option<&mut Grid> {
        let module = self.modules.get_mut(id.0).and_then(Option::as_mut);
        module.map(|module| &mut module.latency_seconds)
    }

    /// Returns the costs on a machine that takes `factor` times as long.
    ///
    /// # Errors
    ///
    /// Fails when a latency is out of range after that.
    pub fn scaled(&self, factor: f64) -> Result<Self, PlanError> {
        let scale = |module: &ModuleProfile| {
            let latency_seconds = module.latency_seconds.scale(factor)?;
            Ok(ModuleProfile { latency_seconds, ..module.clone() })
        };
        let modules = self.modules.iter().map(|module| module.as_ref().map(scale).transpose());
        Ok(Self { modules: modules.collect::<Result<_, PlanError>>()? })
    }

    /// Returns the latency of modules that run one after another.
    ///
    /// # Errors
    ///
    /// Fails when all of them are the identity.
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

    /// Returns the largest measured batch; larger batches run in chunks of it.
    pub fn max_batch(&self) -> usize {
        let grids = self.modules.iter().flatten().map(|module| &module.latency_seconds);
        grids.filter_map(|grid| grid.batches().last().copied()).min().unwrap_or(1)
    }

    /// Returns the measured lengths in tokens.
    pub fn token_knots(&self) -> &[usize] {
        self.modules.iter().flatten().next().map_or(&[], |m| m.latency_seconds.tokens())
    }
}

/// Version of the measuring method; modules measured with another version are measured again.
const VERSION: u8 = 2;

/// Returns the digest under which module `id` is cached, or `None` if it is the identity. It
/// depends on the maximum length of the family's texts, because that limits the measured lengths.
pub(crate) fn module_digest(family: &Family, id: ModuleId) -> Option<String> {
    let mut key = family.cost_key(id)?;
    key.extend(family.manifest.limits.max_tokens.to_le_bytes());
    key.push(VERSION);
    Some(digest(&key))
}

/// Returns the digest that identifies a network among the proven ones.
pub(crate) fn network_digest(network: &Network) -> String {
    digest(&network.fingerprint())
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn machine(processor: &str) -> MachineKey {
        let (processor, runtime) = (processor.into(), "any".into());
        MachineKey { processor, num_threads: 2, spin: false, runtime }
    }

    fn cache(module: &str) -> ProfileCache {
        let grid = || Grid::new(vec![1, 4], vec![8], vec![0.25, 0.5]).expect("a grid");
        let profile = ModuleProfile { latency_seconds: grid(), activation_bytes: grid() };
        let modules = [(module.to_owned(), profile)].into();
        ProfileCache { modules, ..ProfileCache::empty(machine("this")) }
    }

    fn read(folder: &Path) -> Result<ProfileCache, PoolError> {
        ProfileCache::read(folder, machine("this"))
    }

    #[test]
    fn a_cache_is_read_as_it_was_written_beside_what_others_measured() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(read(folder.path()).expect("read").modules.is_empty());
        for module in ["one", "two"] {
            cache(module).write(folder.path()).expect("written");
        }
        let found = read(folder.path()).expect("read");
        assert_eq!(found.modules["one"], cache("one").modules["one"]);
        assert_eq!(found.modules.len(), 2);
        for network in ["first", "second"] {
            let proven = [network.to_owned()].into();
            ProfileCache { proven, ..cache("one") }.write(folder.path()).expect("written");
        }
        let found = read(folder.path()).expect("read");
        assert!(["first", "second"].iter().all(|network| found.proven.contains(*network)));
        assert_eq!(found.modules.len(), 2);
    }

    #[test]
    fn a_cache_with_any_one_bit_flipped_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        cache("one").write(folder.path()).expect("written");
        let path = machine("this").file(folder.path());
        let whole = fs::read(&path).expect("read");
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).expect("written");
            assert!(read(folder.path()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn whatever_else_lies_in_a_cache_s_place_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = machine("this").file(folder.path());
        for content in ["", "{", "{}", "null", "[1]", "\u{0}"] {
            fs::write(&path, content).expect("written");
            assert!(read(folder.path()).is_err(), "{content:?}");
        }
        fs::write(&path, b"\xff\xfe\x00broken").expect("written");
        assert!(read(folder.path()).is_err());
        // The cache of another machine lies under this machine's name.
        let other = ProfileCache { machine: machine("other"), ..cache("one") };
        other.write(folder.path()).expect("written");
        fs::rename(other.machine.file(folder.path()), &path).expect("renamed");
        assert!(read(folder.path()).is_err());
        // The next write replaces it.
        cache("one").write(folder.path()).expect("written");
        assert!(read(folder.path()).is_ok());
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("made");
        assert!(read(folder.path()).is_err());
        assert!(cache("one").write(folder.path()).is_err());
    }

    #[test]
    fn values_that_are_no_costs_are_refused_with_a_right_digest() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = serde_json::to_string(&cache("one")).expect("JSON");
        for (value, is_right) in [("0.5", true), ("-0.5", false), ("1e999", false), ("null", false)]
        {
            let text = text.replacen("[0.25,0.5]", &format!("[0.25,{value}]"), 1);
            let cache: &RawValue = serde_json::from_str(&text).expect("JSON");
            let sealed = Sealed { sha256: digest(text.as_bytes()), cache };
            let text = serde_json::to_string(&sealed).expect("JSON");
            fs::write(machine("this").file(folder.path()), text).expect("written");
            assert_eq!(read(folder.path()).is_ok(), is_right, "{value}");
        }
    }
}
