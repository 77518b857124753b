//! The Pareto front of a graph's paths, by exact label setting.
//!
//! Spaces are visited in topological order. At each space, every incoming edge extends the partial
//! paths (labels) kept at its start. A label is dropped if another one beats or equals it in
//! latency, weights, activations and loss. All four combine monotonically, so a dropped label could
//! not have led to a better path. See Martins, "On a multicriteria shortest path problem", 1984. At
//! the output, weights and activations become memory. The front is then taken over latency, memory
//! and quality.
//!
//! An option bounds the number of labels. An overflow is an error: a front is never cut silently.

mod cost;
mod graph;
mod order;
#[cfg(test)]
mod search_tests;

pub use cost::{EdgeCost, PathCost};
pub use graph::{CostedEdge, CostedGraph};
pub use order::{Ends, topological_order};

use std::{cmp::Ordering, collections::BTreeSet};

use super::{
    error::PlanError,
    staircase::{DominanceTree, Staircase},
};

/// Multiple of the label limit that a space may hold while its incoming edges are gathered.
const GATHER_FACTOR: usize = 16;

/// Tolerance and size limit of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchOptions {
    /// Relative tolerance; 0 finds the exact front. With ε, every path has a representative in the
    /// front. Its latency and its memory are at most (1 + ε) times the path's. Its quality is at
    /// least 1 / (1 + ε) of the path's.
    pub epsilon: f64,
    /// Most partial paths kept per space; a search that needs more fails. While the edges into a
    /// space are gathered, it holds up to 17 times this number of candidates. A candidate takes 56
    /// bytes.
    pub max_labels_per_space: usize,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self { epsilon: 0.0, max_labels_per_space: 100_000 }
    }
}

/// A path from input to output.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontPath {
    /// Indices of the path's edges, in path order.
    pub edges: Vec<usize>,
    /// Cost of the path.
    pub cost: PathCost,
}

/// The Pareto front: paths that no other path beats in latency, memory and quality at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Front {
    /// The paths by ascending latency, then memory; only one of several paths with equal costs.
    pub paths: Vec<FrontPath>,
    /// Number of partial paths that the search kept at all spaces.
    pub num_labels: usize,
}

/// Finds the Pareto front of a graph.
///
/// Of partial paths with equal costs, the one with the lexicographically smallest edges is kept. A
/// quality above 1 counts as 1. Costs are compared exactly. Sums of equal summands in another order
/// may differ by rounding; an epsilon as small as 1e-9 removes such near-duplicates.
///
/// # Errors
///
/// Fails on an invalid epsilon, and on more labels at a space than the options allow.
pub fn pareto_front(graph: &CostedGraph, options: &SearchOptions) -> Result<Front, PlanError> {
    let epsilon = options.epsilon;
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(PlanError::InvalidEpsilon { epsilon });
    }
    let mut search = Search::new(graph, options);
    for &space in graph.order() {
        search.settle(space)?;
    }
    Ok(search.into_front())
}

/// Finds the path with the least latency. Of equal paths it is the one with the lexicographically
/// smallest edges.
pub fn cheapest_path(graph: &CostedGraph) -> FrontPath {
    let mut best = vec![FrontPath { edges: Vec::new(), cost: PathCost::EMPTY }; graph.num_spaces()];
    for &space in graph.order() {
        let extended = graph.incoming(space).iter().map(|&index| {
            let edge = &graph.edges()[index];
            let previous = &best[edge.from];
            let mut edges = previous.edges.clone();
            edges.push(index);
            FrontPath { edges, cost: previous.cost.then(&edge.cost) }
        });
        let cheapest = extended.min_by(|left, right| {
            let by_latency = left.cost.latency_seconds.total_cmp(&right.cost.latency_seconds);
            by_latency.then_with(|| left.edges.cmp(&right.edges))
        });
        if let Some(path) = cheapest {
            best[space] = path;
        }
    }
    best.swap_remove(graph.output())
}

/// A partial path from the input to a space.
#[derive(Debug, Clone, Copy)]
struct Label {
    cost: PathCost,
    /// The last edge, and the position of the label that it extends; `None` for the empty path.
    step: Option<(usize, usize)>,
}

/// The state of one search: the labels of the spaces settled so far.
struct Search<'a> {
    graph: &'a CostedGraph,
    max_labels: usize,
    /// Logarithmic width of the cells, each of which keeps one label; 0 keeps all labels.
    cell_width: f64,
    /// Bytes of activations that every path from a space to the output needs anyway, by space.
    activation_floor: Vec<u64>,
    labels: Vec<Vec<Label>>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a CostedGraph, options: &SearchOptions) -> Self {
        Self {
            graph,
            max_labels: options.max_labels_per_space,
            cell_width: options.epsilon.ln_1p() / depth(graph),
            activation_floor: activation_floor(graph),
            labels: vec![Vec::new(); graph.num_spaces()],
        }
    }

    /// Finds the labels of `space`; the labels of all spaces before it must be known.
    fn settle(&mut self, space: usize) -> Result<(), PlanError> {
        if space == self.graph.input() {
            self.labels[space].push(Label { cost: PathCost::EMPTY, step: None });
            return Ok(());
        }
        let gather_limit = self.max_labels.saturating_mul(GATHER_FACTOR);
        let mut labels = Vec::new();
        for &index in self.graph.incoming(space) {
            self.extend_into(&mut labels, index);
            if labels.len() > gather_limit {
                labels = self.non_dominated(labels);
                // At least half the room must be free again. Otherwise every further edge would
                // cost a pass.
                self.check_limit(space, labels.len(), gather_limit / 2)?;
            }
        }
        labels = self.non_dominated(labels);
        if self.cell_width > 0.0 {
            keep_one_per_cell(&mut labels, self.cell_width);
        }
        self.check_limit(space, labels.len(), self.max_labels)?;
        self.labels[space] = labels;
        Ok(())
    }

    /// Appends the labels that edge `index` creates from the labels at its start.
    ///
    /// Activations below the rest of the path's need make no difference. They are raised to it,
    /// which makes more labels comparable.
    fn extend_into(&self, labels: &mut Vec<Label>, index: usize) {
        let edge = &self.graph.edges()[index];
        let floor = self.activation_floor[edge.to];
        labels.extend(self.labels[edge.from].iter().enumerate().map(|(position, label)| {
            let mut cost = label.cost.then(&edge.cost);
            cost.activation_bytes = cost.activation_bytes.max(floor);
            Label { cost, step: Some((index, position)) }
        }));
    }

    /// Returns the labels that no other label beats or equals, sorted.
    fn non_dominated(&self, mut labels: Vec<Label>) -> Vec<Label> {
        // The sort is stable, because a stable sort exploits the sorted runs of the edges. Equal
        // labels do not occur.
        labels.sort_by(|left, right| self.compare(left, right));
        let activations = labels.iter().map(|label| label.cost.activation_bytes).collect();
        let mut tree = DominanceTree::new(activations);
        labels.retain(|Label { cost, .. }| {
            tree.admit(cost.weight_bytes, cost.activation_bytes, cost.loss)
        });
        labels
    }

    /// Orders two labels of one space such that a label comes after all labels that dominate it.
    fn compare(&self, left: &Label, right: &Label) -> Ordering {
        let (a, b) = (&left.cost, &right.cost);
        let by_latency = a.latency_seconds.total_cmp(&b.latency_seconds);
        by_latency
            .then_with(|| a.weight_bytes.cmp(&b.weight_bytes))
            .then_with(|| a.activation_bytes.cmp(&b.activation_bytes))
            .then_with(|| a.loss.total_cmp(&b.loss))
            .then_with(|| self.edges_of(left).cmp(&self.edges_of(right)))
    }

    /// Returns the edges of a partial path, in path order.
    fn edges_of(&self, label: &Label) -> Vec<usize> {
        let mut edges = Vec::new();
        let mut step = label.step;
        while let Some((edge, position)) = step {
            edges.push(edge);
            step = self.labels[self.graph.edges()[edge].from][position].step;
        }
        edges.reverse();
        edges
    }

    fn check_limit(&self, space: usize, num_labels: usize, limit: usize) -> Result<(), PlanError> {
        if num_labels > limit {
            let max_labels = self.max_labels;
            return Err(PlanError::TooManyLabels { space, num_labels, max_labels });
        }
        Ok(())
    }

    /// Returns the front over latency, memory and quality of the labels at the output.
    fn into_front(self) -> Front {
        // Beyond quality 1, a lower loss is not a gain.
        let loss = |label: &Label| label.cost.loss.max(0.0);
        let mut labels = self.labels[self.graph.output()].clone();
        labels.sort_by(|left, right| {
            let by_latency = left.cost.latency_seconds.total_cmp(&right.cost.latency_seconds);
            by_latency
                .then_with(|| left.cost.memory_bytes().cmp(&right.cost.memory_bytes()))
                .then_with(|| loss(left).total_cmp(&loss(right)))
                .then_with(|| self.edges_of(left).cmp(&self.edges_of(right)))
        });
        let mut admitted = Staircase::default();
        labels.retain(|label| admitted.admit(label.cost.memory_bytes(), loss(label)));
        let paths = labels
            .iter()
            .map(|label| FrontPath { edges: self.edges_of(label), cost: label.cost })
            .collect();
        Front { paths, num_labels: self.labels.iter().map(Vec::len).sum() }
    }
}

/// Returns, for each space, the least peak of activations over the paths from there to the output.
fn activation_floor(graph: &CostedGraph) -> Vec<u64> {
    let mut floor = vec![u64::MAX; graph.num_spaces()];
    floor[graph.output()] = 0;
    for &space in graph.order().iter().rev() {
        for &index in graph.incoming(space) {
            let edge = &graph.edges()[index];
            let peak = edge.cost.activation_bytes.max(floor[space]);
            floor[edge.from] = floor[edge.from].min(peak);
        }
    }
    floor
}

/// Returns the number of edges of the longest path, at least 1.
fn depth(graph: &CostedGraph) -> f64 {
    let mut depth = vec![0.0_f64; graph.num_spaces()];
    for &space in graph.order() {
        for &index in graph.incoming(space) {
            depth[space] = depth[space].max(depth[graph.edges()[index].from] + 1.0);
        }
    }
    depth[graph.output()].max(1.0)
}

/// Keeps the first label in each cell of a logarithmic grid (Papadimitriou and Yannakakis, "On the
/// approximability of trade-offs", 2000).
///
/// Labels of a cell differ by less than a factor of e^`width`, so each edge loses at most this
/// factor. Loss is a logarithm already.
fn keep_one_per_cell(labels: &mut Vec<Label>, width: f64) {
    let cell = |logarithm: f64| (logarithm / width).floor().to_bits();
    let mut taken = BTreeSet::new();
    labels.retain(|Label { cost, .. }| {
        taken.insert([
            cell(cost.latency_seconds.ln()),
            cell(to_f64(cost.weight_bytes).ln()),
            cell(to_f64(cost.activation_bytes).ln()),
            cell(cost.loss),
        ])
    });
}

#[expect(clippy::cast_precision_loss, reason = "only the cell counts, and cells are far wider")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}
