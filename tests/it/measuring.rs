//! Measured profiles: complete, in order, and measured once.

use std::{sync::Arc, time::Duration};

use tessera::{
    app::{Machine, Profiles},
    assembly::Family,
    family::ModuleId,
    fit::{IdleMeasuring, ProfileOptions, measure_profile},
    offer::{MachineKey, Profile, ProfileCache, ShippedProfile, ShippedProfiles},
    runtime::Executor,
};

use crate::support::{
    computed_cache, fashion_family, language::Model, machine_key, root, runtime,
    synthetic::Synthetic,
};

/// Measures the modules of `family` that `cache` lacks. Returns how often it was saved.
fn measure(family: &Arc<Family>, cache: &mut ProfileCache) -> usize {
    let options = ProfileOptions {
        batches: vec![1, 4],
        tokens: vec![8, 16, 256],
        time_per_cell: Duration::ZERO,
        min_runs: 1,
        attempts: 1,
    };
    let mut num_saved = 0;
    let mut save = |_: &ProfileCache| {
        num_saved += 1;
        Ok(())
    };
    let mut executor = Executor::new(runtime(), family.clone());
    measure_profile(&mut executor, &options, cache, &(), &mut save).expect("measured");
    num_saved
}

#[test]
fn every_module_is_measured_once_at_every_batch_and_length() {
    let language = Model::read("qwen2_moe").with_top_k(&[1]);
    let (tiny, language_family) = (Synthetic::new(), language.load().expect("loaded"));
    for (family, tokens) in
        [(fashion_family(), &[1][..]), (tiny.load(), &[8, 16, 32]), (language_family, &[8, 16, 20])]
    {
        let name = &family.manifest.name;
        let mut cache = ProfileCache::empty(machine_key());
        assert!(measure(&family, &mut cache) > 0, "{name}");
        let profile = cache.profile_of(&family).expect("every module was measured");
        assert_eq!((profile.max_batch(), profile.token_knots()), (4, tokens), "{name}");
        for id in (0..family.graph.modules().len()).map(ModuleId) {
            let Some(module) = profile.module(id) else {
                assert!(family.cost_key(id).is_none(), "{name}: {id:?} costs nothing");
                continue;
            };
            let seconds = |batch, tokens| module.latency_seconds.at(batch, tokens);
            assert!(seconds(1, 1) > 0.0, "{name}: {id:?}");
            assert!(tokens.iter().all(|length| seconds(1, *length) <= seconds(4, *length)));
            assert!(tokens.windows(2).all(|pair| seconds(4, pair[0]) <= seconds(4, pair[1])));
            assert!(module.activation_bytes.at(4, 1) >= module.activation_bytes.at(1, 1));
        }
        assert_eq!(measure(&family, &mut cache), 0, "{name}: nothing is left to measure");
    }
}

#[test]
fn a_family_that_was_never_measured_here_has_the_costs_of_another_machine() {
    let family = fashion_family();
    let machine = Machine::new(runtime(), machine_key(), None);
    let profiles = Profiles { machine: &machine, progress: &() };
    let mut shipped = ShippedProfiles::default();
    let ProfileCache { machine: known, modules, proven, .. } = computed_cache(&family);
    let other = MachineKey { processor: "another".into(), ..known };
    // A millionth of a second is less than any machine takes for the calibration.
    shipped.add(ShippedProfile { machine: other, calibration_seconds: 1e-6, modules, proven });
    let found = profiles.at_once(&family, &shipped).expect("every module is there");
    assert_eq!(found.estimated, timed(&found.profile));
    let computed = computed_cache(&family).profile_of(&family).expect("complete");
    let ratios = timed(&found.profile).into_iter().filter_map(|id| {
        let (found, computed) = (found.profile.module(id)?, computed.module(id)?);
        assert_eq!(found.activation_bytes, computed.activation_bytes, "memory is the same");
        Some(found.latency_seconds.at(1, 1) / computed.latency_seconds.at(1, 1))
    });
    let ratios: Vec<f64> = ratios.collect();
    assert!(ratios[0] > 1.0, "this machine is slower: {}", ratios[0]);
    assert!(ratios.iter().all(|ratio| (ratio / ratios[0] - 1.0).abs() < 1e-9), "{ratios:?}");
}

#[test]
fn the_pool_has_costs_of_all_its_families_from_each_machine() {
    let pool = root().join("models");
    let shipped = ShippedProfiles::read(&pool.join("profile.json")).expect("readable");
    assert!(!shipped.machines.is_empty());
    for name in ["text", "fashion", "chat"] {
        let family = Family::load(&pool.join(name)).expect("loaded");
        for machine in &shipped.machines {
            let mut cache = ProfileCache::empty(machine_key());
            machine.complete(&mut cache, 1.0).expect("a ratio");
            let found = cache.profile_of(&family);
            assert!(found.is_ok(), "{name} was not measured on {:?}", machine.machine);
        }
    }
}

/// Returns the modules that take time.
fn timed(profile: &Profile) -> Vec<ModuleId> {
    (0..1_000).map(ModuleId).filter(|id| profile.module(*id).is_some()).collect()
}

#[test]
fn a_family_that_no_file_knows_is_served_with_estimates() {
    let folder = tempfile::tempdir().expect("a folder");
    let machine = Machine::new(runtime(), machine_key(), Some(folder.path().to_owned()));
    let profiles = Profiles { machine: &machine, progress: &() };
    for family in [fashion_family(), Synthetic::new().load()] {
        let name = &family.manifest.name;
        let found = profiles.at_once(&family, &ShippedProfiles::default()).expect("estimated");
        assert_eq!(found.estimated, timed(&found.profile), "{name}");
        for id in found.estimated.iter().copied() {
            let module = found.profile.module(id).expect("it takes time");
            let seconds = |batch| module.latency_seconds.at(batch, 1);
            assert!(seconds(1) > 0.0 && seconds(16) >= seconds(1), "{name}: {id:?}");
            assert!(module.activation_bytes.at(1, 1) > 0.0, "{name}: {id:?}");
        }
        let kept = ProfileCache::read(folder.path(), machine_key()).expect("it was kept");
        assert_eq!(kept.estimated_of(&family), timed(&found.profile), "{name}");
        // What is measured takes the place of estimates.
        let cache = computed_cache(&family);
        cache.write(folder.path()).expect("written");
        let measured = profiles.at_once(&family, &ShippedProfiles::default()).expect("read");
        assert_eq!(measured.estimated, [], "{name}");
        let estimates =
            ProfileCache { estimated: cache.modules.keys().cloned().collect(), ..cache };
        estimates.write(folder.path()).expect("written");
        let kept = profiles.at_once(&family, &ShippedProfiles::default()).expect("read");
        assert_eq!(kept.estimated, timed(&kept.profile), "{name}: they are still estimates");
    }
}

#[test]
fn modules_are_measured_a_little_at_a_time_while_it_is_quiet() {
    let family = fashion_family();
    let known = computed_cache(&family).profile_of(&family).expect("complete");
    let (modules, executor) = (timed(&known), Executor::new(runtime(), family.clone()));
    let measure = |is_quiet: bool| {
        let mut measuring = IdleMeasuring::new(family.clone(), known.clone(), modules.clone());
        while !measuring.is_done() {
            measuring.turn(&executor, &|| is_quiet).expect("it runs");
        }
        let num_measured = measuring.measured().count();
        (num_measured, measuring.profile().expect("costs"))
    };
    let (num_measured, profile) = measure(true);
    assert_eq!(num_measured, modules.len(), "every module takes less than a millisecond");
    let seconds = |profile: &Profile, id, batch| {
        profile.module(id).map_or(0.0, |module| module.latency_seconds.at(batch, 1))
    };
    for id in &modules {
        let one = seconds(&profile, *id, 1);
        assert!(one > 0.0 && one.to_bits() != seconds(&known, *id, 1).to_bits(), "{id:?}");
        assert!(seconds(&profile, *id, 16) >= one, "{id:?}: batches follow");
    }
    let (num_measured, profile) = measure(false);
    assert_eq!(num_measured, 0, "it was never quiet");
    assert!(modules.iter().all(|id| profile.module(*id) == known.module(*id)));
}
