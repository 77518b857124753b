//! Step runs: modules of a step that no plan separates, which run in one session.

use std::collections::BTreeMap;

use super::networks::Networks;
use crate::{
    family::FamilyGraph,
    module::{CacheSpec, ModuleError, Network},
    plan::ModuleId,
};

/// Weights beyond which a run takes no further module, in bytes. A call takes about 20 µs beside
/// the work of its modules, which matters less the more they have to do. A session is evicted as a
/// whole.
const MAX_BYTES: u64 = 64 << 20;

/// Modules that a step runs in one session. Every plan that has the first has them all, in this
/// order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRun {
    /// Position of the network that computes them, for the tokens of a step.
    pub network: usize,
    /// Modules.
    pub modules: Vec<ModuleId>,
    /// Modules that keep a cache.
    pub attention: Vec<ModuleId>,
}

/// Runs of a family, and the caches of its modules.
#[derive(Debug, Default)]
pub(super) struct StepRuns {
    /// Runs by their first module.
    pub(super) runs: BTreeMap<ModuleId, StepRun>,
    /// Caches of attention modules.
    pub(super) caches: BTreeMap<ModuleId, CacheSpec>,
}

impl StepRuns {
    /// Finds the runs of `graph`. Modules that run in steps have their networks in `in_step`; the
    /// networks of runs are kept in `networks`.
    ///
    /// # Errors
    ///
    /// Fails when an input of a network has no source.
    pub(super) fn new(
        graph: &FamilyGraph,
        networks: &mut Networks,
        in_step: &BTreeMap<ModuleId, Network>,
    ) -> Result<Self, ModuleError> {
        let mut found = Self::default();
        for (id, network) in in_step {
            let spec = network.cached().and_then(|own| own.caches.first());
            found.caches.extend(spec.map(|spec| (*id, *spec)));
        }
        for modules in chains(graph, in_step) {
            let mut attention = modules.clone();
            attention.retain(|id| found.caches.contains_key(id));
            // Without attention, tokens need not be told apart.
            if attention.is_empty() {
                continue;
            }
            let parts: Vec<&Network> = modules.iter().map(|id| &in_step[id]).collect();
            let [first, last] = [0, modules.len() - 1].map(|place| graph.module(modules[place]));
            let name = format!("{}..{}.cached", first.name, last.name);
            let network = networks.keep_network(&name, Network::chain(&parts))?;
            found.runs.insert(modules[0], StepRun { network, modules, attention });
        }
        Ok(found)
    }
}

/// Returns the modules with a network in `in_step`, each in one chain.
fn chains(graph: &FamilyGraph, in_step: &BTreeMap<ModuleId, Network>) -> Vec<Vec<ModuleId>> {
    let follows: BTreeMap<ModuleId, ModuleId> =
        in_step.keys().filter_map(|id| Some((*id, only_next(graph, *id)?))).collect();
    let later: Vec<ModuleId> = follows.values().copied().collect();
    let mut chains = Vec::new();
    for first in in_step.keys().filter(|id| !later.contains(id)) {
        let mut next = Some(*first);
        let mut chain: Vec<ModuleId> = Vec::new();
        while let Some((id, network)) = next.and_then(|id| in_step.get_key_value(&id)) {
            let mut parts: Vec<&Network> = chain.iter().map(|id| &in_step[id]).collect();
            parts.push(network);
            let bytes: u64 = parts.iter().map(|network| network.weight_bytes()).sum();
            if parts.len() > 1 && (bytes > MAX_BYTES || !Network::is_chain(&parts)) {
                chains.push(std::mem::take(&mut chain));
            }
            chain.push(*id);
            next = follows.get(id).copied();
        }
        chains.push(chain);
    }
    chains
}

/// Returns the module that follows `id` in every plan, if no plan has it without `id` before it. A
/// module to the output is not returned, since it runs on some of the tokens only.
fn only_next(graph: &FamilyGraph, id: ModuleId) -> Option<ModuleId> {
    let space = graph.module(id).to;
    let mut after = graph.outgoing(space).iter();
    let (next, other) = (*after.next()?, after.next());
    let num_before = graph.modules().iter().filter(|module| module.to == space).count();
    let is_last = graph.module(next).to == graph.output();
    (other.is_none() && num_before == 1 && !is_last).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        family::{Module, ModuleKind, Passed, Space, SpaceId, SpaceKind, SpaceSpec},
        module::Precision,
        onnx::GraphBuilder,
    };

    /// Returns the graph of a chain of modules between the spaces of `edges`, from 0 to `end`.
    fn graph(edges: &[[usize; 2]], end: usize) -> FamilyGraph {
        let kind = |index| match index {
            0 => SpaceKind::Input,
            index if index == end => SpaceKind::Output,
            depth => SpaceKind::Hidden { anchor: 0, depth, position: 0, passed: Passed::Own },
        };
        let space = |index: usize| Space {
            name: format!("s{index}"),
            kind: kind(index),
            spec: SpaceSpec::default(),
        };
        let modules = edges.iter().enumerate().map(|(index, [from, to])| Module {
            name: format!("m{index}"),
            from: SpaceId(*from),
            to: SpaceId(*to),
            kind: ModuleKind::Mlp,
            variant: Some(format!("v{index}")),
        });
        let spaces = (0..=end).map(space).collect();
        FamilyGraph::new(vec!["a".into()], spaces, modules.collect()).expect("a graph")
    }

    fn found(graph: &FamilyGraph, modules: &[usize], precision: Precision) -> Vec<Vec<usize>> {
        let network = Network::new(GraphBuilder::default().end(), precision);
        let in_step = modules.iter().map(|index| (ModuleId(*index), network.clone())).collect();
        let mut found = chains(graph, &in_step);
        found.sort();
        found.into_iter().map(|chain| chain.into_iter().map(|id| id.0).collect()).collect()
    }

    #[test]
    fn modules_that_every_plan_has_run_together() {
        let chain = graph(&[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]], 5);
        // The head runs on some of the tokens.
        assert_eq!(found(&chain, &[1, 2, 3, 4], Precision::F32), [vec![1, 2, 3], vec![4]]);
        assert_eq!(found(&chain, &[1, 3], Precision::F32), [[1], [3]], "module 2 is no network");
    }

    #[test]
    fn a_choice_between_modules_ends_a_run() {
        // Module 5 can take the place of module 2, and module 6 leaves after module 3.
        let edges = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [2, 3], [4, 6], [5, 6]];
        let graph = graph(&edges, 6);
        let all: Vec<usize> = (1..edges.len()).collect();
        let found = found(&graph, &all, Precision::F32);
        assert_eq!(found, [vec![1], vec![2], vec![3], vec![4], vec![5], vec![6], vec![7]]);
    }
}
