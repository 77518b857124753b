//! Plans that an evaluation measures before it knows anything.

use std::collections::BTreeSet;

use crate::{
    family::{FamilyGraph, INT8, Module, ModuleId, ModuleKind, SpaceId},
    plan::Plan,
};

/// Returns the plan of the reference's own path to its own head, without variants, bridges and
/// stitches.
pub(super) fn reference_plan(graph: &FamilyGraph, reference: &str) -> Option<Plan> {
    let head = graph.reference_head(reference)?;
    path_through(graph, head, |module| {
        let leads_elsewhere =
            matches!(module.kind, ModuleKind::Bridge | ModuleKind::Merge | ModuleKind::Stitch);
        i64::from(module.variant.is_some() || leads_elsewhere)
    })
    .map(Plan::from)
}

/// Returns a path through each module that departs from its anchor. The rest of the path departs
/// least. It takes the int8 form of blocks that have one, for speed.
pub(super) fn singles(graph: &FamilyGraph) -> BTreeSet<Plan> {
    use ModuleKind::{Attention, Block, Mlp};
    let is_plain = |module: &Module| {
        matches!(module.kind, Block | Attention | Mlp) && module.variant.is_none()
    };
    let modules = graph.modules().iter().enumerate();
    modules
        .filter(|(_, module)| !is_plain(module))
        .filter_map(|(index, _)| path_through(graph, ModuleId(index), departure))
        .map(Plan::from)
        .collect()
}

/// Returns paths that take a variant wherever it exists, for each variant and each exit or head.
/// They avoid bridges, mergings and stitches.
pub(super) fn uniform(graph: &FamilyGraph) -> BTreeSet<Plan> {
    let modules = graph.modules().iter().filter(|module| !module.is_skip());
    let variants: BTreeSet<&str> = modules.filter_map(|module| module.variant.as_deref()).collect();
    let exits = graph.modules().iter().enumerate().filter(|(_, m)| m.to == graph.output());
    let exits: Vec<usize> = exits.map(|(index, _)| index).collect();
    let mut plans = BTreeSet::new();
    for variant in variants {
        let length = |module: &Module| match module.kind {
            ModuleKind::Stitch | ModuleKind::Bridge | ModuleKind::Merge => 1_000,
            _ => i64::from(module.variant.as_deref() != Some(variant)),
        };
        for exit in &exits {
            let end = graph.modules()[*exit].from;
            if let Some(mut path) = shortest(graph, graph.input(), end, length) {
                path.push(ModuleId(*exit));
                plans.insert(Plan::from(path));
            }
        }
    }
    plans
}

/// Returns `reference` with the parts of its first blocks in int8, for each number of parts, so
/// that there is a plan for every time between the two.
pub(super) fn begun_in_int8(graph: &FamilyGraph, reference: &Plan) -> BTreeSet<Plan> {
    let int8 = |id: &ModuleId| {
        let plain = graph.module(*id);
        let is_int8 = |other: &ModuleId| {
            let other = graph.module(*other);
            other.to == plain.to && other.variant.as_deref() == Some(INT8)
        };
        graph.outgoing(plain.from).iter().copied().find(is_int8)
    };
    let path = &reference.path;
    let mut begun = path.clone();
    let mut plans = BTreeSet::new();
    for (place, id) in path.iter().enumerate() {
        if let Some(other) = int8(id) {
            begun[place] = other;
            plans.insert(Plan::from(begun.clone()));
        }
    }
    plans
}

/// Finds the path through module `id` with the least sum of `departure`.
fn path_through(
    graph: &FamilyGraph,
    id: ModuleId,
    departure: fn(&Module) -> i64,
) -> Option<Vec<ModuleId>> {
    let module = graph.module(id);
    let mut path = shortest(graph, graph.input(), module.from, departure)?;
    path.push(id);
    path.extend(shortest(graph, module.to, graph.output(), departure)?);
    Some(path)
}

/// Finds the path between two spaces with the least sum of `length`.
///
/// The search is Bellman-Ford: lengths may be negative, and the graph has no cycle.
fn shortest(
    graph: &FamilyGraph,
    from: SpaceId,
    to: SpaceId,
    length: impl Fn(&Module) -> i64,
) -> Option<Vec<ModuleId>> {
    let mut best: Vec<Option<(i64, Option<ModuleId>)>> = vec![None; graph.spaces().len()];
    best[from.0] = Some((0, None));
    for _ in 0..graph.spaces().len() {
        for (index, module) in graph.modules().iter().enumerate() {
            let Some((cost, _)) = best[module.from.0] else { continue };
            let cost = cost + length(module);
            if best[module.to.0].is_none_or(|(known, _)| cost < known) {
                best[module.to.0] = Some((cost, Some(ModuleId(index))));
            }
        }
    }
    let mut path = Vec::new();
    let mut end = to;
    while end != from {
        let id = best[end.0]?.1?;
        path.push(id);
        end = graph.module(id).from;
    }
    path.reverse();
    Some(path)
}

/// Returns the distance of a module from its anchor. Blocks have a negative one, and int8 blocks
/// the least, so that paths prefer them.
fn departure(module: &Module) -> i64 {
    use ModuleKind::{Bridge, Exit, Head, Merge, Stem, Stitch};
    let is_int8 = module.is_int8();
    match (module.kind, &module.variant) {
        (Stem | Head, _) => 0,
        (Bridge | Merge | Stitch | Exit, _) if is_int8 => 1_000,
        (Bridge | Merge | Stitch | Exit, _) => 1_001,
        (_, None) => -1,
        (_, Some(_)) if is_int8 => -2,
        (_, Some(_)) => 1_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Passed, Space, SpaceKind, SpaceSpec};

    /// Returns a graph of an anchor with two blocks, a bridge over them, and the first in int8.
    fn graph() -> FamilyGraph {
        let hidden =
            |depth| SpaceKind::Hidden { anchor: 0, depth, position: 0, passed: Passed::Own };
        let kinds = [SpaceKind::Input, SpaceKind::Output, hidden(0), hidden(1), hidden(2)];
        let spaces = kinds.iter().zip(["in", "out", "a.0", "a.1", "a.2"]);
        let space = |(kind, name): (&SpaceKind, &str)| {
            let (name, kind) = (name.into(), *kind);
            Space { name, kind, spec: SpaceSpec::default() }
        };
        let spaces = spaces.map(space);
        let modules = [
            (ModuleKind::Bridge, 2, 4, None),
            (ModuleKind::Stem, 0, 2, None),
            (ModuleKind::Block, 2, 3, None),
            (ModuleKind::Block, 3, 4, None),
            (ModuleKind::Head, 4, 1, None),
            (ModuleKind::Block, 2, 3, Some(INT8)),
            (ModuleKind::Block, 3, 4, Some(INT8)),
        ];
        let modules = modules.iter().enumerate().map(|(index, (kind, from, to, variant))| Module {
            name: format!("m{index}"),
            from: SpaceId(*from),
            to: SpaceId(*to),
            kind: *kind,
            variant: variant.map(str::to_owned),
        });
        let graph = FamilyGraph::new(vec!["a".into()], spaces.collect(), modules.collect());
        graph.expect("a graph")
    }

    #[test]
    fn the_reference_runs_every_block_where_a_bridge_of_no_variant_is_shorter() {
        let plan = reference_plan(&graph(), "a");
        assert_eq!(plan, Some([1, 2, 3, 4].map(ModuleId).to_vec().into()));
    }

    #[test]
    fn a_reference_goes_over_to_int8_block_by_block() {
        let graph = graph();
        let reference = reference_plan(&graph, "a").expect("a path");
        let begun = begun_in_int8(&graph, &reference);
        let expected = [[1, 5, 3, 4], [1, 5, 6, 4]].map(|path| path.map(ModuleId).to_vec().into());
        assert_eq!(begun, BTreeSet::from(expected));
    }
}
