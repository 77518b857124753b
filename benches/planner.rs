//! What planning costs: a choice per request, a front per family.
//!
//! `cargo bench --bench planner`. Inputs are seeded; the line on stderr gives percentiles of single
//! choices.

#![expect(clippy::print_stderr, reason = "a benchmark tells what it measures")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use tessera::plan::{
    Budget, CostedEdge, CostedGraph, EdgeCost, Grid, PlanEntry, PlanTable, Quality, QualitySource,
    SearchOptions, Shape, pareto_front,
};

const NUM_PLANS: usize = 500;

/// A linear congruential generator (Knuth's MMIX constants): the same numbers on every machine.
struct Lcg(u64);

impl Lcg {
    fn next_u32(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 32).expect("half of 64 bits")
    }

    /// Returns a number in [0, 1).
    fn next_unit(&mut self) -> f64 {
        f64::from(self.next_u32()) / 4_294_967_296.0
    }
}

/// A table along a plausible front, profiled at 4 batches and 4 lengths.
fn plan_table(random: &mut Lcg) -> PlanTable {
    let (batches, tokens) = ([1_u32, 4, 16, 32], [16_u32, 64, 128, 256]);
    let entries = (0..NUM_PLANS).map(|index| {
        let size = 1.0 + 20.0 * random.next_unit();
        let grid = |per_token: f64, fixed: f64| {
            let value = |batch: u32, length: u32| fixed + per_token * f64::from(batch * length);
            let values =
                batches.iter().flat_map(|batch| tokens.map(|length| value(*batch, length)));
            let axis = |knots: [u32; 4]| knots.map(|knot| knot as usize).to_vec();
            Grid::new(axis(batches), axis(tokens), values.collect()).expect("the grid is valid")
        };
        let quality = 0.5 + 0.4 * (size / 21.0) + 0.05 * random.next_unit();
        PlanEntry {
            id: format!("small[0..{index}]>base[6..12]"),
            plan: vec![tessera::plan::ModuleId(index)].into(),
            latency_seconds: grid(size * 1e-6, size * 1e-4),
            weight_bytes: u64::from(random.next_u32() >> 6),
            activation_bytes: grid(1e4, 0.0),
            quality: Quality { value: quality, source: QualitySource::Predicted },
        }
    });
    PlanTable::new(entries.collect(), 0.1).expect("the table is valid")
}

/// Layers of parallel edges; with `is_trade_off` the costlier edge of a layer tends to lose less
/// quality.
fn layered_graph(num_layers: usize, num_parallel: usize, is_trade_off: bool) -> CostedGraph {
    let mut random = Lcg(7);
    let edges = (0..num_layers * num_parallel).map(|index| {
        let size = random.next_unit();
        let mut other = || {
            if is_trade_off { size + 0.1 * random.next_unit() } else { random.next_unit() }
        };
        let (weights, loss) = (other(), other());
        let cost = EdgeCost {
            latency_seconds: 1e-3 * (0.2 + size),
            weight_bytes: bytes(1e6 * (0.2 + weights)),
            activation_bytes: bytes(1e5 * random.next_unit()),
            loss: if is_trade_off { 0.05 * (1.2 - loss) } else { 0.05 * loss },
        };
        let from = index / num_parallel;
        CostedEdge { from, to: from + 1, cost }
    });
    CostedGraph::new(num_layers + 1, edges.collect(), 0, num_layers).expect("layers have no cycle")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test sizes are small and not negative"
)]
fn bytes(value: f64) -> u64 {
    value as u64
}

fn latency_budget(random: &mut Lcg) -> Budget {
    let seconds = 1e-4 + 2e-2 * random.next_unit() * random.next_unit();
    Budget { latency: Some(Duration::from_secs_f64(seconds)), ..Budget::default() }
}

/// Prints percentiles of single choices, feasible or not.
fn print_percentiles(table: &PlanTable, random: &mut Lcg) {
    let mut nanoseconds: Vec<u128> = (0..100_000)
        .map(|_| {
            let budget = latency_budget(random);
            let (batch, tokens) = (random.next_u32() % 40 + 1, random.next_u32() % 300 + 1);
            let start = Instant::now();
            let choice =
                black_box(table.choose(Shape::new(batch as usize, tokens as usize), &budget));
            let elapsed = start.elapsed();
            drop(choice);
            elapsed.as_nanos()
        })
        .collect();
    nanoseconds.sort_unstable();
    let percentile = |percent: usize| nanoseconds[nanoseconds.len() * percent / 100];
    eprintln!(
        "choose among {NUM_PLANS} plans: p50 {} ns, p90 {} ns, p99 {} ns",
        percentile(50),
        percentile(90),
        percentile(99)
    );
}

fn bench_choose(criterion: &mut Criterion) {
    let mut random = Lcg(1);
    let table = plan_table(&mut random);
    print_percentiles(&table, &mut random);
    let mut group = criterion.benchmark_group("choose_500");
    let budget = |microseconds| Budget {
        latency: Some(Duration::from_micros(microseconds)),
        ..Budget::default()
    };
    for (name, budget) in
        [("loose", budget(1_000_000)), ("tight", budget(400)), ("infeasible", budget(1))]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| table.choose(black_box(Shape::new(1, 100)), &budget).is_ok());
        });
    }
    group.finish();
    let grid = &table.entries()[0].latency_seconds;
    criterion.bench_function("grid_at", |bencher| {
        bencher.iter(|| grid.at(black_box(3), black_box(100)));
    });
}

fn bench_front(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("front");
    group.sample_size(10);
    for (name, num_layers, is_trade_off, epsilon) in [
        ("1e6_paths_independent", 6, false, 0.0),
        ("1e6_paths_trade_off", 6, true, 0.0),
        ("1e12_paths_independent", 12, false, 0.0),
        ("1e12_paths_trade_off_epsilon_0.05", 12, true, 0.05),
    ] {
        let graph = layered_graph(num_layers, 10, is_trade_off);
        let options = SearchOptions { epsilon, ..SearchOptions::default() };
        match pareto_front(&graph, &options) {
            Ok(front) => {
                eprintln!("{name}: {} plans, {} labels", front.paths.len(), front.num_labels)
            }
            Err(error) => eprintln!("{name}: {error}"),
        }
        group.bench_function(name, |bencher| {
            bencher.iter(|| pareto_front(black_box(&graph), &options).is_ok());
        });
    }
    group.finish();
}

criterion_group!(planner, bench_choose, bench_front);
criterion_main!(planner);
