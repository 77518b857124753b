//! Measured profiles: complete, in order, and measured once.

use std::{sync::Arc, time::Duration};

use tessera::{
    app::{Machine, Profiles},
    assembly::Family,
    family::ModuleId,
    fit::{ProfileOptions, measure_profile},
    offer::{MachineKey, ProfileCache, ShippedProfile, ShippedProfiles},
    runtime::Executor,
};

use crate::support::{
    computed_cache, fashion_family, language::Model, machine_key, runtime, synthetic::Synthetic,
};

/// Measures the modules of `family` that `cache` lacks. Returns how often it was saved.
fn measure(family: &Arc<Family>, cache: &mut ProfileCache) -> usize {
    let options = ProfileOptions {
        batches: vec![1, 4],
        tokens: vec![8, 16, 256],
        time_per_cell: Duration::ZERO,
        min_runs: 1,
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
    assert!(profiles.known(&family, &shipped).expect("no file").is_none());
    let ProfileCache { machine: known, modules, proven } = computed_cache(&family);
    let other = MachineKey { processor: "another".into(), ..known };
    // A millionth of a second is less than any machine takes for the calibration.
    shipped.add(ShippedProfile { machine: other, calibration_seconds: 1e-6, modules, proven });
    let found = profiles.known(&family, &shipped).expect("read").expect("every module is there");
    let computed = computed_cache(&family).profile_of(&family).expect("complete");
    let ratios = (0..family.graph.modules().len()).map(ModuleId).filter_map(|id| {
        let (found, computed) = (found.module(id)?, computed.module(id)?);
        assert_eq!(found.activation_bytes, computed.activation_bytes, "memory is the same");
        Some(found.latency_seconds.at(1, 1) / computed.latency_seconds.at(1, 1))
    });
    let ratios: Vec<f64> = ratios.collect();
    assert!(ratios[0] > 1.0, "this machine is slower: {}", ratios[0]);
    assert!(ratios.iter().all(|ratio| (ratio / ratios[0] - 1.0).abs() < 1e-9), "{ratios:?}");
    // Without one of its modules, the family must be measured.
    let first = shipped.machines[0].modules.keys().next().expect("one").clone();
    shipped.machines[0].modules.remove(&first);
    assert!(profiles.known(&family, &shipped).expect("read").is_none());
}
