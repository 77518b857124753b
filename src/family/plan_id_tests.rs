//! Tests of plan ids.

use super::*;
use crate::{
    family::{Module, Passed, Space, SpaceSpec},
    plan::{BudgetParameters, Offers},
};

/// Returns a graph of two anchors with stitches, a bridge and exits. Anchor `a` has 2 blocks, and
/// `b` has 3 blocks of two sub-layers each.
pub(in crate::family) fn graph() -> FamilyGraph {
    let mut spaces = vec![space("in", SpaceKind::Input), space("out", SpaceKind::Output)];
    for depth in 0..=2 {
        spaces.push(space(
            &format!("a.{depth}"),
            SpaceKind::Hidden { anchor: 0, depth, position: 0, passed: Passed::Own },
        ));
    }
    for depth in 0..=3 {
        spaces.push(space(
            &format!("b.{depth}"),
            SpaceKind::Hidden { anchor: 1, depth, position: 0, passed: Passed::Own },
        ));
        spaces.push(space(
            &format!("b.{depth}+"),
            SpaceKind::Hidden { anchor: 1, depth, position: 1, passed: Passed::Own },
        ));
    }
    let mut edges = vec![
        ("in", "a.0", ModuleKind::Stem, None),
        ("in", "b.0", ModuleKind::Stem, None),
        ("a.0", "a.1", ModuleKind::Block, None),
        ("a.1", "a.2", ModuleKind::Block, None),
        ("a.1", "a.2", ModuleKind::Block, Some("int8")),
        ("a.1", "b.1", ModuleKind::Stitch, None),
        ("a.1", "b.1", ModuleKind::Stitch, Some("lite")),
        ("a.2", "out", ModuleKind::Exit, None),
        ("b.0+", "b.2", ModuleKind::Bridge, None),
        ("b.3", "out", ModuleKind::Head, None),
        ("b.3", "out", ModuleKind::Exit, Some("deep")),
    ];
    let names: Vec<String> = (0..3).map(|d| format!("b.{d}")).collect();
    let inner: Vec<String> = (0..3).map(|d| format!("b.{d}+")).collect();
    let after: Vec<String> = (1..4).map(|d| format!("b.{d}")).collect();
    for block in 0..3 {
        for variant in [None, Some("int8"), Some("skip")] {
            edges.push((&names[block], &inner[block], ModuleKind::Attention, variant));
            edges.push((&inner[block], &after[block], ModuleKind::Mlp, variant));
        }
    }
    let find = |name: &str| SpaceId(spaces.iter().position(|s| s.name == name).expect("named"));
    let modules = edges
        .iter()
        .enumerate()
        .map(|(index, (from, to, kind, variant))| Module {
            name: format!("m{index}"),
            from: find(from),
            to: find(to),
            kind: *kind,
            variant: variant.map(str::to_owned),
        })
        .collect();
    FamilyGraph::new(vec!["a".into(), "b".into()], spaces, modules).expect("a valid graph")
}

fn space(name: &str, kind: SpaceKind) -> Space {
    Space { name: name.into(), kind, spec: SpaceSpec::default() }
}

/// Appends every path from `space` to the output to `all`, each after `so_far`.
fn paths(graph: &FamilyGraph, space: SpaceId, so_far: &[ModuleId], all: &mut Vec<Vec<ModuleId>>) {
    if space == graph.output() {
        all.push(so_far.to_vec());
    }
    for id in graph.outgoing(space) {
        let longer = [so_far, &[*id]].concat();
        paths(graph, graph.module(*id).to, &longer, all);
    }
}

#[test]
fn every_path_has_its_own_id_and_is_found_again() {
    let graph = graph();
    let mut all = Vec::new();
    paths(&graph, graph.input(), &[], &mut all);
    assert_eq!(all.len(), 2 + 2 * (729 + 27) + 4 * 81);
    let plans: Vec<Plan> = all.into_iter().map(Plan::from).collect();
    let ids: std::collections::HashSet<_> =
        plans.iter().map(|plan| PlanId::of(&graph, plan)).collect();
    assert_eq!(ids.len(), plans.len());
    for plan in plans {
        let id = PlanId::of(&graph, &plan);
        assert_eq!(PlanId::parse(&graph, id.as_str()).expect("found"), plan, "{id}");
    }
}

#[test]
fn bricks_and_extents_stand_behind_the_path() {
    let bricks = BTreeMap::from([("lora".to_owned(), vec!["billing".to_owned()])]);
    let extents = BTreeMap::from([("dims".to_owned(), vec![64, 128])]);
    let graph = graph().with_offers(Offers { bricks, extents });
    let id = "a[0..1]>b[1..3]{via:lite}@lora=billing@dims=128";
    let plan = PlanId::parse(&graph, id).expect("found");
    assert_eq!(plan.extents.get("dims"), Some(&128));
    assert_eq!(PlanId::of(&graph, &plan).as_str(), id);
    for (id, reason) in [
        ("a[0..2]@lora=other", "must be one of billing"),
        ("a[0..2]@dims=32", "must be one of 64, 128"),
        ("a[0..2]@", "not of the form @key=value"),
    ] {
        let error = PlanId::parse(&graph, id).expect_err(id).to_string();
        assert!(error.contains(reason), "{id}: {error}");
    }
}

#[test]
fn ids_read_as_documented() {
    let graph = graph();
    for id in [
        "a[0..2]",
        "b[0..0+]>b[2..3]",
        "b[0..0+]{int8.attn:0}>b[2..3]{exit:deep,skip:2}",
        "a[0..1]>b[1..3]",
        "a[0..1]>b[1..3]{via:lite,int8:1..3}",
        "b[0..3]{exit:deep,int8:0,skip.mlp:2}",
        "b[0..3]{int8.attn:1,skip:0,skip:2}",
    ] {
        let plan = PlanId::parse(&graph, id).expect("found");
        assert_eq!(PlanId::of(&graph, &plan).as_str(), id);
    }
}

#[test]
fn what_is_no_plan_is_refused_with_the_reason() {
    let graph = graph();
    for (id, reason) in [
        ("", "not of the form"),
        ("a", "not of the form"),
        ("a[0..2", "not of the form"),
        ("a[2..0]", "not of the form"),
        ("c[0..2]", "no anchor `c`; anchors are a, b"),
        ("a[0..3]", "no block 2"),
        ("a[0..1]", "from `a.1` to `out`"),
        ("a[0..2]>b[2..3]", "from `a.2` to `b.2`"),
        ("a[0..2]{int8:0}", "no such variant"),
        ("a[0..2]{int8:7}", "is not about blocks"),
        ("b[0..3]{exit:none}", "called `none`"),
        ("a[0..99999999999999999999]", "not of the form"),
        ("a[0..2]@lora=x@dims=128", "`lora` is not a choice of the family"),
    ] {
        let error = PlanId::parse(&graph, id).expect_err(id).to_string();
        assert!(error.contains(reason), "{id}: {error}");
    }
    assert!(PlanId::parse(&graph, &"a[0..1]>".repeat(9_000)).is_err());
}

#[test]
fn a_long_id_that_is_offered_can_be_asked_for() {
    let name = |depth| format!("{}.{depth}", "long".repeat(20));
    let num_blocks = 400;
    let mut spaces = vec![space("in", SpaceKind::Input), space("out", SpaceKind::Output)];
    spaces.extend((0..=num_blocks).map(|depth| {
        space(
            &name(depth),
            SpaceKind::Hidden { anchor: 0, depth, position: 0, passed: Passed::Own },
        )
    }));
    let module = |index: usize, from, to, kind, variant: Option<&str>| Module {
        name: format!("m{index}"),
        from: SpaceId(from),
        to: SpaceId(to),
        kind,
        variant: variant.map(str::to_owned),
    };
    let blocks = (0..num_blocks).map(|block| {
        let variant = (block % 2 == 0).then_some("int8");
        module(block, block + 2, block + 3, ModuleKind::Block, variant)
    });
    let stem = module(num_blocks, 0, 2, ModuleKind::Stem, None);
    let head = module(num_blocks + 1, num_blocks + 2, 1, ModuleKind::Head, None);
    let modules = [stem].into_iter().chain(blocks).chain([head]).collect();
    let graph = FamilyGraph::new(vec!["long".repeat(20)], spaces, modules).expect("a valid graph");
    let path: Vec<ModuleId> = (0..num_blocks + 2).map(ModuleId).collect();
    let plan = Plan::from(path);
    let id = PlanId::of(&graph, &plan);
    assert!(id.as_str().len() > 1_024, "{id:?}");
    let asked = Some(id.as_str().to_owned());
    let asked = BudgetParameters { plan: asked, ..BudgetParameters::default() }.parse();
    let budget = asked.expect("a plan that is offered");
    let found = PlanId::parse(&graph, &budget.plan.expect("a plan")).expect("found");
    assert_eq!(found, plan);
}
