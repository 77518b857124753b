//! A family's graph with a cost on every edge, validated once so that searches need no checks.
//!
//! The graph does not know names. Spaces and edges are indices, which the caller maps back.

use super::{
    cost::EdgeCost,
    order::{Ends, topological_order},
};
use crate::plan::error::PlanError;

/// A module as the search sees it: its two spaces and its cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostedEdge {
    /// Index of the space that the module reads.
    pub from: usize,
    /// Index of the space that the module writes.
    pub to: usize,
    /// Cost of running the module.
    pub cost: EdgeCost,
}

/// A directed acyclic graph with costs, whose output is reachable from its input.
#[derive(Debug, Clone)]
pub struct CostedGraph {
    edges: Vec<CostedEdge>,
    input: usize,
    output: usize,
    /// Incoming edges of each space that lie on a path from input to output, in ascending order.
    incoming: Vec<Vec<usize>>,
    /// The spaces on a path from input to output, in topological order.
    order: Vec<usize>,
}

impl CostedGraph {
    /// Creates a graph, after checking `edges`, with the spaces `input` and `output` as its ends.
    ///
    /// # Errors
    ///
    /// Fails on an index outside the graph. Fails on a latency that is negative or not finite, and
    /// on a loss that is not finite. Fails on costs that overflow when added, a cycle, or an output
    /// that the input does not reach.
    pub fn new(
        num_spaces: usize,
        edges: Vec<CostedEdge>,
        input: usize,
        output: usize,
    ) -> Result<Self, PlanError> {
        for (end, space) in [("input", input), ("output", output)] {
            if space >= num_spaces {
                return Err(PlanError::EndOutOfRange { end, space, num_spaces });
            }
        }
        check_edges(&edges, num_spaces)?;
        let ends = |edge: &CostedEdge| Ends { from: edge.from, to: edge.to };
        let ends: Vec<Ends> = edges.iter().map(ends).collect();
        let sorted =
            topological_order(&ends, num_spaces).map_err(|edge| PlanError::Cycle { edge })?;
        let useful = find_useful_spaces(&edges, &sorted, input, output);
        if !useful[input] {
            return Err(PlanError::OutputUnreachable { input, output });
        }
        let mut incoming = vec![Vec::new(); num_spaces];
        for (index, edge) in edges.iter().enumerate() {
            if useful[edge.from] && useful[edge.to] {
                incoming[edge.to].push(index);
            }
        }
        let order = sorted.into_iter().filter(|space| useful[*space]).collect();
        Ok(Self { edges, input, output, incoming, order })
    }

    /// Returns the number of spaces, including those on no path from input to output.
    pub fn num_spaces(&self) -> usize {
        self.incoming.len()
    }

    /// Returns all edges, in the given order.
    pub fn edges(&self) -> &[CostedEdge] {
        &self.edges
    }

    /// Returns the index of the input space.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Returns the index of the output space.
    pub fn output(&self) -> usize {
        self.output
    }

    /// Returns the number of paths from input to output, or `None` if it exceeds `u128`.
    pub fn num_paths(&self) -> Option<u128> {
        let mut num_paths = vec![0_u128; self.num_spaces()];
        num_paths[self.input] = 1;
        for &space in &self.order {
            for &edge in &self.incoming[space] {
                num_paths[space] =
                    num_paths[space].checked_add(num_paths[self.edges[edge].from])?;
            }
        }
        Some(num_paths[self.output])
    }

    /// Returns the edges into `space` that lie on a path from input to output, by ascending index.
    pub(super) fn incoming(&self, space: usize) -> &[usize] {
        &self.incoming[space]
    }

    /// Returns the spaces on a path from input to output, in topological order.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }
}

/// Checks every edge, and that the sum of all costs does not overflow. Then the sum along a path
/// does not overflow either.
fn check_edges(edges: &[CostedEdge], num_spaces: usize) -> Result<(), PlanError> {
    let (mut latency_seconds, mut loss, mut weight_bytes) = (0.0_f64, 0.0_f64, 0_u64);
    for (index, CostedEdge { from, to, cost }) in edges.iter().enumerate() {
        if let Some(&space) = [from, to].into_iter().find(|space| **space >= num_spaces) {
            return Err(PlanError::EdgeOutOfRange { edge: index, space, num_spaces });
        }
        if !(cost.latency_seconds.is_finite() && cost.latency_seconds >= 0.0) {
            let latency_seconds = cost.latency_seconds;
            return Err(PlanError::InvalidLatency { edge: index, latency_seconds });
        }
        if !cost.loss.is_finite() {
            return Err(PlanError::InvalidLoss { edge: index, loss: cost.loss });
        }
        let overflow = PlanError::CostOverflow { edge: index };
        latency_seconds += cost.latency_seconds;
        loss += cost.loss.abs();
        weight_bytes = weight_bytes.checked_add(cost.weight_bytes).ok_or(overflow.clone())?;
        let memory_bytes = weight_bytes.checked_add(cost.activation_bytes);
        if memory_bytes.is_none() || !latency_seconds.is_finite() || !loss.is_finite() {
            return Err(overflow);
        }
    }
    Ok(())
}

/// Returns, for each space, whether it lies on a path from `input` to `output`.
fn find_useful_spaces(
    edges: &[CostedEdge],
    sorted: &[usize],
    input: usize,
    output: usize,
) -> Vec<bool> {
    let mut position = vec![0; sorted.len()];
    for (index, &space) in sorted.iter().enumerate() {
        position[space] = index;
    }
    let mut by_position: Vec<&CostedEdge> = edges.iter().collect();
    by_position.sort_by_key(|edge| position[edge.from]);
    let mut from_input = vec![false; sorted.len()];
    from_input[input] = true;
    for edge in &by_position {
        from_input[edge.to] |= from_input[edge.from];
    }
    let mut to_output = vec![false; sorted.len()];
    to_output[output] = true;
    for edge in by_position.iter().rev() {
        to_output[edge.from] |= to_output[edge.to];
    }
    from_input.iter().zip(to_output).map(|(reached, reaches)| *reached && reaches).collect()
}

#[cfg(test)]
mod tests {
    use super::{CostedEdge, CostedGraph};
    use crate::plan::{EdgeCost, PlanError};

    fn edge(from: usize, to: usize) -> CostedEdge {
        CostedEdge { from, to, cost: EdgeCost { latency_seconds: 1.0, ..EdgeCost::default() } }
    }

    fn with_cost(cost: EdgeCost) -> Vec<CostedEdge> {
        vec![edge(0, 1), CostedEdge { from: 1, to: 2, cost }]
    }

    fn refusal(
        num_spaces: usize,
        edges: Vec<CostedEdge>,
        input: usize,
        output: usize,
    ) -> PlanError {
        CostedGraph::new(num_spaces, edges, input, output).expect_err("the graph is invalid")
    }

    #[test]
    fn dangling_indices_are_refused() {
        let dangling = PlanError::EdgeOutOfRange { edge: 1, space: 7, num_spaces: 3 };
        assert_eq!(refusal(3, vec![edge(0, 1), edge(1, 7)], 0, 2), dangling);
        let output = PlanError::EndOutOfRange { end: "output", space: 3, num_spaces: 3 };
        assert_eq!(refusal(3, vec![edge(0, 1)], 0, 3), output);
        let input = PlanError::EndOutOfRange { end: "input", space: 0, num_spaces: 0 };
        assert_eq!(refusal(0, vec![], 0, 0), input);
    }

    #[test]
    fn latencies_and_losses_that_do_not_add_up_are_refused() {
        for latency_seconds in [-1.0, f64::NAN, f64::INFINITY] {
            let refused =
                refusal(3, with_cost(EdgeCost { latency_seconds, ..EdgeCost::default() }), 0, 2);
            assert!(matches!(refused, PlanError::InvalidLatency { edge: 1, .. }));
        }
        for loss in [f64::NEG_INFINITY, f64::NAN, f64::INFINITY] {
            let refused = refusal(3, with_cost(EdgeCost { loss, ..EdgeCost::default() }), 0, 2);
            assert!(matches!(refused, PlanError::InvalidLoss { edge: 1, .. }));
        }
    }

    #[test]
    fn costs_that_overflow_when_added_are_refused() {
        let heavy = EdgeCost { weight_bytes: u64::MAX, activation_bytes: 1, ..EdgeCost::default() };
        let slow = EdgeCost { latency_seconds: f64::MAX, ..EdgeCost::default() };
        let twice =
            |cost| vec![CostedEdge { from: 0, to: 1, cost }, CostedEdge { from: 1, to: 2, cost }];
        assert_eq!(refusal(3, twice(heavy), 0, 2), PlanError::CostOverflow { edge: 0 });
        assert_eq!(refusal(3, twice(slow), 0, 2), PlanError::CostOverflow { edge: 1 });
    }

    #[test]
    fn a_cycle_is_refused_and_an_edge_on_it_is_named() {
        // Edge 0 leads into the cycle of edges 1 and 2, edges 3 and 4 lead out of it.
        let edges = vec![edge(0, 1), edge(1, 2), edge(2, 1), edge(2, 3), edge(3, 4)];
        let refused = refusal(5, edges, 0, 4);
        assert!(matches!(refused, PlanError::Cycle { edge: 1 | 2 }), "{refused}");
        assert_eq!(refusal(1, vec![edge(0, 0)], 0, 0), PlanError::Cycle { edge: 0 });
    }

    #[test]
    fn an_unreachable_output_is_refused() {
        let unreachable = PlanError::OutputUnreachable { input: 0, output: 2 };
        assert_eq!(refusal(3, vec![edge(0, 1), edge(2, 1)], 0, 2), unreachable);
    }

    #[test]
    fn paths_are_counted_without_dead_ends() {
        let edges = vec![edge(0, 1), edge(0, 1), edge(1, 3), edge(0, 3), edge(1, 2), edge(3, 4)];
        let graph = CostedGraph::new(5, edges, 0, 3).expect("the graph is valid");
        assert_eq!(graph.num_paths(), Some(3));
    }
}
