//! Costs that were measured on other machines. By these a family is served on a machine on which
//! it was never measured.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::profile::{MachineKey, ModuleProfile, ProfileCache};
use crate::{
    plan::PlanError,
    pool::{PoolError, parse_json, write_atomically},
    tensor::{FileKind, read_text},
};

/// Name of the file in a pool.
pub const SHIPPED_FILE: &str = "profile.json";

/// Costs from other machines, as a file beside the families.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShippedProfiles {
    /// Machines on which families were measured.
    pub machines: Vec<ShippedProfile>,
}

/// Costs from one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShippedProfile {
    /// Machine on which the modules were measured.
    pub machine: MachineKey,
    /// Time of the calibration's work on that machine, in seconds.
    pub calibration_seconds: f64,
    /// Costs of modules by the digest of their networks.
    pub modules: BTreeMap<String, ModuleProfile>,
    /// Digests of the networks whose rows were proven to be independent.
    pub proven: BTreeSet<String>,
}

impl ShippedProfiles {
    /// Reads the file at `path`, or returns no machines if it is missing.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or is malformed.
    pub fn read(path: &Path) -> Result<Self, PoolError> {
        let text = match read_text(path, FileKind::Records) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(reason) => return Err(PoolError::File { path: path.to_owned(), reason }),
        };
        parse_json(path, &text)
    }

    /// Writes the file at `path`.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PoolError> {
        let text = serde_json::to_string(self);
        let text = text.map_err(|error| PoolError::malformed(path, &error))?;
        write_atomically(path, text.as_bytes())
    }

    /// Adds what a machine has measured to what the file has of it.
    pub fn add(&mut self, measured: ShippedProfile) {
        let known = self.machines.iter_mut().find(|known| known.machine == measured.machine);
        match known {
            None => self.machines.push(measured),
            Some(known) => {
                known.calibration_seconds = measured.calibration_seconds;
                known.modules.extend(measured.modules);
                known.proven.extend(measured.proven);
            }
        }
    }

    /// Returns the costs from the machine that is most like `machine`, or `None` if there is none:
    /// the same processor first, then the nearest number of threads.
    pub fn nearest(&self, machine: &MachineKey) -> Option<&ShippedProfile> {
        self.machines.iter().min_by_key(|known| {
            let other = &known.machine;
            let distance = other.num_threads.abs_diff(machine.num_threads);
            (other.processor != machine.processor, distance, other.spin != machine.spin)
        })
    }
}

impl ShippedProfile {
    /// Adds to `cache` the modules that it lacks, as estimates. This machine takes `ratio` times as
    /// long.
    ///
    /// # Errors
    ///
    /// Fails on a ratio that is not a positive number.
    pub fn complete(&self, cache: &mut ProfileCache, ratio: f64) -> Result<(), PlanError> {
        for (digest, module) in &self.modules {
            if !cache.modules.contains_key(digest) {
                let latency_seconds = module.latency_seconds.scale(ratio)?;
                let scaled = ModuleProfile { latency_seconds, ..module.clone() };
                cache.modules.insert(digest.clone(), scaled);
                cache.estimated.insert(digest.clone());
            }
        }
        cache.proven.extend(self.proven.iter().cloned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Grid;

    fn machine(processor: &str, num_threads: usize) -> MachineKey {
        let runtime = "00".to_owned();
        MachineKey { processor: processor.to_owned(), num_threads, spin: true, runtime }
    }

    fn shipped(processor: &str, num_threads: usize, seconds: f64) -> ShippedProfile {
        let grid = |value| Grid::new(vec![1], vec![1], vec![value]).expect("a grid");
        let module = ModuleProfile { latency_seconds: grid(seconds), activation_bytes: grid(8.0) };
        ShippedProfile {
            machine: machine(processor, num_threads),
            calibration_seconds: 1e-3,
            modules: BTreeMap::from([("one".to_owned(), module)]),
            proven: BTreeSet::new(),
        }
    }

    #[test]
    fn the_nearest_machine_has_the_same_processor_or_else_as_many_threads() {
        let mut all = ShippedProfiles::default();
        assert_eq!(all.nearest(&machine("a", 2)), None);
        for (processor, num_threads) in [("a", 8), ("b", 1), ("b", 4)] {
            all.add(shipped(processor, num_threads, 1.0));
        }
        let nearest = |processor, num_threads| {
            let found = all.nearest(&machine(processor, num_threads)).expect("one");
            (found.machine.processor.clone(), found.machine.num_threads)
        };
        assert_eq!(nearest("a", 1), ("a".to_owned(), 8));
        assert_eq!(nearest("c", 5), ("b".to_owned(), 4));
        assert_eq!(nearest("c", 1), ("b".to_owned(), 1));
    }

    #[test]
    fn what_is_missing_is_scaled_and_what_was_measured_here_stays() {
        let known = shipped("a", 2, 0.5);
        let mut cache = ProfileCache::empty(machine("b", 2));
        known.complete(&mut cache, 2.0).expect("a ratio");
        let latency = |cache: &ProfileCache| cache.modules["one"].latency_seconds.at(1, 1);
        assert!((latency(&cache) - 1.0).abs() < 1e-12);
        known.complete(&mut cache, 8.0).expect("a ratio");
        assert!((latency(&cache) - 1.0).abs() < 1e-12, "it was there already");
    }

    #[test]
    fn a_file_that_is_written_is_read_again_and_a_missing_one_has_no_machines() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(SHIPPED_FILE);
        assert_eq!(ShippedProfiles::read(&path).expect("none"), ShippedProfiles::default());
        let mut all = ShippedProfiles::default();
        all.add(shipped("a", 2, 0.5));
        all.add(shipped("a", 2, 0.7));
        assert_eq!(all.machines.len(), 1, "a machine is measured again");
        all.write(&path).expect("written");
        assert_eq!(ShippedProfiles::read(&path).expect("read"), all);
        std::fs::write(&path, "{\"machines\": [], \"more\": 1}").expect("written");
        let error = ShippedProfiles::read(&path).expect_err("unknown key").to_string();
        assert!(error.contains("more"), "{error}");
    }
}
