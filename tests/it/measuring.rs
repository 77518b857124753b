//! Measured profiles: complete, in order, and measured once.

use std::{sync::Arc, time::Duration};

use tessera::{
    assembly::Family,
    family::ModuleId,
    fit::{ProfileOptions, measure_profile},
    offer::ProfileCache,
    runtime::Executor,
};

use crate::support::{fashion_family, language::Model, machine_key, runtime, synthetic::Synthetic};

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
