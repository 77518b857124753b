//! What the fronts of the shipped families promise, with the costs that are shipped beside them.

use tessera::{
    app::quality_of,
    assembly::Family,
    offer::{BrokenPromise, Offer, ProfileCache, ShippedProfiles, broken_promises, plan_table},
    plan::Shape,
};

use crate::support::{machine_key, root};

/// Returns the promises that a family of the pool breaks, on each machine whose costs are shipped.
fn broken(name: &str, shape: Shape) -> Vec<BrokenPromise> {
    let pool = root().join("models");
    let shipped = ShippedProfiles::read(&pool.join("profile.json")).expect("readable");
    let family = Family::load(&pool.join(name)).expect("loaded");
    let quality = quality_of(&family).expect("measured");
    let broken = shipped.machines.iter().flat_map(|machine| {
        let mut cache = ProfileCache::empty(machine_key());
        machine.complete(&mut cache, 1.0).expect("a ratio");
        let profile = cache.profile_of(&family).expect("every module was measured");
        let table = plan_table(&family, &profile, &quality, 0.0).expect("a table");
        broken_promises(&family.graph, &table, &quality, shape)
    });
    broken.collect()
}

/// Returns the plans beside each gap, and checks that every plan lies on its line.
fn gaps(broken: Vec<BrokenPromise>) -> Vec<[Offer; 2]> {
    let beside = broken.into_iter().map(|promise| match promise {
        BrokenPromise::Gap { faster, slower } => [faster, slower],
        below @ BrokenPromise::BelowLine { .. } => panic!("{below}"),
    });
    beside.collect()
}

#[test]
fn plans_of_fashion_lie_on_the_line_and_have_gaps_between_depths_and_anchors_alone() {
    let known = ["t[0..", "s[0..6]", "m[0..6]"];
    for [faster, slower] in gaps(broken("fashion", Shape::new(1, 1))) {
        let is_known = known.iter().any(|start| faster.id.starts_with(start));
        assert!(is_known, "{faster:?} to {slower:?}");
    }
}

#[test]
fn plans_of_text_lie_on_the_line_and_have_a_wide_gap_below_the_first_block_alone() {
    for [faster, slower] in gaps(broken("text", Shape::DEFAULT)) {
        let ratio = slower.latency_seconds / faster.latency_seconds;
        assert!(faster.id == "l6[0..0]" || ratio < 1.3, "{faster:?} to {slower:?}");
    }
}
