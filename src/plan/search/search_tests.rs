//! Tests of the search against brute force.

use proptest::prelude::{
    Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use super::{
    CostedEdge, CostedGraph, EdgeCost, Front, FrontPath, PathCost, PlanError, SearchOptions,
    cheapest_path, pareto_front,
};

/// Latency, memory, and the loss that lowers quality: 0 for a negative loss.
type Objectives = (f64, u64, f64);

fn objectives(cost: &PathCost) -> Objectives {
    (cost.latency_seconds, cost.memory_bytes(), cost.loss.max(0.0))
}

fn covers(left: Objectives, right: Objectives) -> bool {
    left.0 <= right.0 && left.1 <= right.1 && left.2 <= right.2
}

fn sorted(mut points: Vec<Objectives>) -> Vec<Objectives> {
    points.sort_by(|left, right| {
        left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)).then(left.2.total_cmp(&right.2))
    });
    points
}

fn exact(graph: &CostedGraph) -> Front {
    pareto_front(graph, &SearchOptions::default()).expect("small graphs stay within the limit")
}

/// Returns every path from input to output, in lexicographic order of edges.
fn enumerate_paths(graph: &CostedGraph) -> Vec<FrontPath> {
    let mut complete = Vec::new();
    let mut open = vec![(graph.input(), Vec::new())];
    while let Some((space, edges)) = open.pop() {
        if space == graph.output() {
            let costs = edges.iter().map(|&edge: &usize| &graph.edges()[edge].cost);
            complete.push(FrontPath { cost: costs.collect(), edges });
            continue;
        }
        for (index, edge) in graph.edges().iter().enumerate() {
            if edge.from == space {
                open.push((edge.to, [edges.as_slice(), &[index]].concat()));
            }
        }
    }
    complete.sort_by(|left, right| left.edges.cmp(&right.edges));
    complete
}

fn brute_force_front(paths: &[FrontPath]) -> Vec<Objectives> {
    let mut points = sorted(paths.iter().map(|path| objectives(&path.cost)).collect());
    points.dedup();
    let all = points.clone();
    points.retain(|point| !all.iter().any(|other| other != point && covers(*other, *point)));
    points
}

/// Returns costs with few distinct values, so that ties, zeros and rounding differences are common.
fn edge_costs() -> impl Strategy<Value = EdgeCost> + Clone {
    let latency_seconds = prop_oneof![Just(0.0), Just(0.1), Just(0.2), Just(0.3), 0.0..1.0_f64];
    let loss = prop_oneof![Just(0.0), Just(0.1), Just(-0.1), Just(0.7), -0.5..1.0_f64];
    (latency_seconds, 0_u64..8, 0_u64..8, loss).prop_map(
        |(latency_seconds, weight_bytes, activation_bytes, loss)| EdgeCost {
            latency_seconds,
            weight_bytes,
            activation_bytes,
            loss,
        },
    )
}

/// Returns costs that add without rounding and have no peaks. Of paths with equal costs, none then
/// has a prefix that beats another's.
fn additive_costs() -> impl Strategy<Value = EdgeCost> + Clone {
    (0_u8..3, 0_u64..3, -1_i8..3).prop_map(|(latency, weight_bytes, loss)| EdgeCost {
        latency_seconds: f64::from(latency),
        weight_bytes,
        activation_bytes: 0,
        loss: f64::from(loss),
    })
}

/// Returns graphs of up to 6 spaces with parallel edges, diamonds and dead ends. Spaces are
/// relabelled so that their topological order differs from the order of indices.
fn graphs(
    costs: impl Strategy<Value = EdgeCost> + Clone + 'static,
) -> impl Strategy<Value = CostedGraph> {
    (2_usize..7)
        .prop_flat_map(move |num_spaces| {
            let ends = (0..num_spaces - 1, 1..num_spaces).prop_map(|(a, b)| (a.min(b), a.max(b)));
            let distinct = ends.prop_map(|(from, to)| (from, if from == to { to + 1 } else { to }));
            let edges = proptest::collection::vec((distinct, costs.clone()), 0..14);
            let labels = Just((0..num_spaces).collect::<Vec<usize>>()).prop_shuffle();
            (Just(num_spaces), edges, labels)
        })
        .prop_map(|(num_spaces, edges, labels)| {
            let mut edges: Vec<CostedEdge> = edges
                .into_iter()
                .map(|((from, to), cost)| (from, to.min(num_spaces - 1), cost))
                .filter(|(from, to, _)| from < to)
                .map(|(from, to, cost)| CostedEdge { from: labels[from], to: labels[to], cost })
                .collect();
            let (input, output) = (labels[0], labels[num_spaces - 1]);
            let cost = EdgeCost { latency_seconds: 5.0, weight_bytes: 40, ..EdgeCost::default() };
            edges.push(CostedEdge { from: input, to: output, cost });
            CostedGraph::new(num_spaces, edges, input, output).expect("edges lead forward")
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_front_equals_brute_force(graph in graphs(edge_costs())) {
        let paths = enumerate_paths(&graph);
        prop_assert_eq!(graph.num_paths(), Some(paths.len() as u128));
        let front = exact(&graph);
        let points = sorted(front.paths.iter().map(|path| objectives(&path.cost)).collect());
        prop_assert_eq!(points, brute_force_front(&paths));
    }

    #[test]
    fn every_path_of_the_front_exists_and_costs_what_it_says(graph in graphs(edge_costs())) {
        let paths = enumerate_paths(&graph);
        for path in exact(&graph).paths {
            prop_assert!(paths.contains(&path), "{path:?}");
        }
    }

    #[test]
    fn of_paths_with_equal_costs_the_lexicographically_smallest_is_kept(
        graph in graphs(additive_costs()),
    ) {
        let paths = enumerate_paths(&graph);
        for path in exact(&graph).paths {
            let first = paths.iter().find(|other| other.cost == path.cost);
            prop_assert_eq!(first, Some(&path));
        }
    }

    #[test]
    fn the_cheapest_path_has_the_least_latency(graph in graphs(edge_costs())) {
        let cheapest = cheapest_path(&graph);
        let paths = enumerate_paths(&graph);
        let least = paths
            .iter()
            .map(|path| path.cost.latency_seconds)
            .min_by(f64::total_cmp)
            .expect("a path exists");
        prop_assert_eq!(cheapest.cost.latency_seconds.to_bits(), least.to_bits());
        prop_assert!(paths.contains(&cheapest));
    }

    #[test]
    fn a_thinned_front_represents_every_path_within_its_tolerance(
        graph in graphs(edge_costs()), epsilon in 0.0..1.0_f64,
    ) {
        let options = SearchOptions { epsilon, ..SearchOptions::default() };
        let front = pareto_front(&graph, &options).expect("small graphs stay within the limit");
        let factor = (1.0 + epsilon) * (1.0 + 1e-9);
        for path in enumerate_paths(&graph) {
            let (latency, quality) = (path.cost.latency_seconds, path.cost.quality());
            let memory = to_f64(path.cost.memory_bytes());
            let represented = front.paths.iter().any(|kept| {
                kept.cost.latency_seconds <= latency * factor
                    && to_f64(kept.cost.memory_bytes()) <= memory * factor
                    && kept.cost.quality() * factor >= quality
            });
            prop_assert!(represented, "{path:?}");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "test sizes are small")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// Returns a graph of layers of parallel edges in a row, with the cost `cost` of each edge.
fn layered(
    num_layers: usize,
    num_parallel: usize,
    cost: impl Fn(usize) -> EdgeCost,
) -> CostedGraph {
    let edges = (0..num_layers * num_parallel)
        .map(|index| {
            let from = index / num_parallel;
            CostedEdge { from, to: from + 1, cost: cost(index) }
        })
        .collect();
    CostedGraph::new(num_layers + 1, edges, 0, num_layers).expect("layers have no cycle")
}

#[test]
fn equal_edges_leave_one_path_of_the_first_edges() {
    let graph = layered(30, 5, |_| EdgeCost { latency_seconds: 1.0, ..EdgeCost::default() });
    let front = exact(&graph);
    assert_eq!(front.paths.len(), 1);
    assert_eq!(front.paths[0].edges, (0..30).map(|layer| layer * 5).collect::<Vec<_>>());
    assert_eq!(front.paths[0], cheapest_path(&graph));
}

#[test]
fn a_front_larger_than_the_limit_is_an_error() {
    // Each layer doubles the labels, by trading latency for loss in powers of two.
    let graph = layered(10, 2, |index| {
        let step = f64::from(1_u32 << (index / 2));
        if index % 2 == 0 {
            EdgeCost { latency_seconds: step, ..EdgeCost::default() }
        } else {
            EdgeCost { loss: step, ..EdgeCost::default() }
        }
    });
    assert_eq!(exact(&graph).paths.len(), 1024);
    let search = |epsilon, max_labels_per_space| {
        pareto_front(&graph, &SearchOptions { epsilon, max_labels_per_space })
    };
    let overflow = PlanError::TooManyLabels { space: 10, num_labels: 1024, max_labels: 1023 };
    assert_eq!(search(0.0, 1023), Err(overflow));
    assert!(search(0.0, 1024).is_ok());
    assert!(matches!(search(0.0, 0), Err(PlanError::TooManyLabels { space: 1, .. })));
}

#[test]
fn many_edges_into_one_space_are_pruned_while_they_are_gathered() {
    // Each of 1000 parallel edges beats the edge before it; 17 labels fit at a time.
    let graph = layered(1, 1000, |index| EdgeCost {
        weight_bytes: 1000 - u64::try_from(index).expect("small"),
        ..EdgeCost::default()
    });
    let options = SearchOptions { max_labels_per_space: 1, ..SearchOptions::default() };
    let front = pareto_front(&graph, &options).expect("one label is left");
    assert_eq!(front.paths[0].edges, [999]);
}

#[test]
fn a_tolerance_that_is_no_tolerance_is_refused() {
    let graph = layered(1, 1, |_| EdgeCost::default());
    for epsilon in [-0.1, f64::NAN, f64::INFINITY] {
        let options = SearchOptions { epsilon, ..SearchOptions::default() };
        let refused = pareto_front(&graph, &options);
        assert!(matches!(refused, Err(PlanError::InvalidEpsilon { .. })));
    }
}

#[test]
fn where_input_is_output_the_empty_path_is_the_front() {
    let graph = CostedGraph::new(1, vec![], 0, 0).expect("the graph is valid");
    let empty = FrontPath { edges: vec![], cost: PathCost::EMPTY };
    assert_eq!(exact(&graph).paths, vec![empty.clone()]);
    assert_eq!(cheapest_path(&graph), empty);
}
