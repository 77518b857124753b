//! Profiles of families, measured here and now.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tessera::{
    assembly::Family,
    fit::{ProfileOptions, measure_profile},
    offer::{MachineKey, Profile, ProfileCache},
    runtime::Executor,
};

use super::{fashion_family, runtime, text_family};

pub(crate) fn fashion_profile() -> Profile {
    static PROFILE: OnceLock<Profile> = OnceLock::new();
    // One run may meet a pause that is longer than all modules take, and its median is that pause.
    PROFILE.get_or_init(|| measured_with(&fashion_family(), 5)).clone()
}

/// Measures the text family's modules quickly and roughly.
pub(crate) fn short_profile() -> Profile {
    static PROFILE: OnceLock<Profile> = OnceLock::new();
    PROFILE.get_or_init(|| measured(&text_family())).clone()
}

pub(crate) fn measured(family: &Arc<Family>) -> Profile {
    measured_with(family, 1)
}

fn measured_with(family: &Arc<Family>, min_runs: usize) -> Profile {
    let cache = measured_cache(family, min_runs);
    cache.profile_of(family).expect("every module was measured")
}

/// Returns the key of the machine that the tests measure.
pub(crate) fn machine_key() -> MachineKey {
    MachineKey { processor: "this one".into(), num_threads: 2, spin: false, runtime: "any".into() }
}

/// Measures the modules of `family`, each at least `min_runs` times.
pub(crate) fn measured_cache(family: &Arc<Family>, min_runs: usize) -> ProfileCache {
    let mut cache = ProfileCache::empty(machine_key());
    let options = ProfileOptions {
        batches: vec![1, 4],
        tokens: vec![8, 64, 256],
        time_per_cell: Duration::from_millis(1),
        min_runs,
    };
    let mut executor = Executor::new(runtime(), family.clone());
    measure_profile(&mut executor, &options, &mut cache, &(), &mut |_| Ok(())).expect("measured");
    cache
}
