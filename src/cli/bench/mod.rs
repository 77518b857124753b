//! The `bench` command: policies under load, side by side.

mod chart;
mod compare;
mod row;

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::{
    args::{
        Common,
        bench::{BenchArguments, Traffic},
    },
    progress::{Bars, say},
};
use crate::{
    bench::{
        Arrivals, FrontPlan, Load, Measured, Message, Pattern, Sample, Target, capacity, drive,
    },
    fit::Progress,
    plan::oracle::{Asked, Bound, Costs, bound},
    pool::write_atomically,
};
use compare::{compare, describe, promising, standings};
use row::{ORACLE, Row, TESSERA};

/// Number of clients that send requests at once while the capacity is measured.
const NUM_CLIENTS: usize = 16;

/// Largest batch of the oracle. Larger ones cost hardly less for each row.
const MOST_ROWS: usize = 16;

/// Settings that all loads share.
struct Setting<'a> {
    arguments: &'a BenchArguments,
    target: Target,
    policies: Vec<String>,
    /// Plans of the front, cheapest first.
    front: Vec<String>,
    capacity: f64,
}

/// Requests of one kind of traffic.
struct Kind {
    name: String,
    arrivals: Arrivals,
    samples: Vec<Sample>,
}

/// Runs every load on the server under every policy, and prints the measurements.
pub(super) fn run(common: &Common, arguments: &BenchArguments) -> anyhow::Result<()> {
    crate::telemetry::start_logging(&common.log, common.log_format, None)?;
    check(arguments)?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("the async runtime cannot start")?;
    let setting = tokio.block_on(set_up(arguments))?;
    let kinds = tokio.block_on(kinds(&setting))?;
    let mut rows = Vec::new();
    say(&heading());
    let bars = Bars::default();
    let num_loads = kinds.len() * arguments.loads.len();
    bars.phase("loads", u64::try_from(num_loads).unwrap_or(u64::MAX));
    for kind in &kinds {
        for load in &arguments.loads {
            rows.extend(tokio.block_on(measure_all(&setting, kind, *load))?);
            bars.step();
        }
    }
    drop(bars);
    report(&setting, &rows)
}

/// Prints the comparisons of `rows`, and writes both to the files that are asked for.
fn report(setting: &Setting<'_>, rows: &[Row]) -> anyhow::Result<()> {
    let Setting { arguments, front, capacity, .. } = setting;
    let standings = standings(rows);
    let comparisons = compare(&standings, front);
    comparisons.iter().for_each(|comparison| say(&describe(comparison)));
    if let Some(path) = &arguments.json {
        let document = json!({
            "family": arguments.family.family,
            "budgets_ms": arguments.budgets_ms,
            "capacity": capacity,
            "seconds": arguments.seconds,
            "warm_up": arguments.warm_up,
            "rows": rows,
            "comparisons": comparisons,
        });
        write_atomically(path, serde_json::to_string_pretty(&document)?.as_bytes())?;
    }
    if let Some(path) = &arguments.svg {
        let title = format!("{}: {capacity:.0} requests/s at load 1", arguments.family.family);
        write_atomically(path, chart::draw(&title, &standings)?.as_bytes())?;
    }
    Ok(())
}

fn check(arguments: &BenchArguments) -> anyhow::Result<()> {
    let BenchArguments { budgets_ms, loads, cv2, capacity, .. } = arguments;
    let is_positive = |value: &f64| value.is_finite() && *value > 0.0;
    for (name, values) in [("--budgets-ms", budgets_ms), ("--loads", loads), ("--cv2", cv2)] {
        if let Some(value) = values.iter().find(|value| !is_positive(value)) {
            anyhow::bail!("{name} has {value}; it must be more than 0");
        }
    }
    anyhow::ensure!(capacity.iter().all(is_positive), "--capacity must be more than 0");
    anyhow::ensure!(
        is_positive(&arguments.seconds) && (0.0..arguments.seconds).contains(&arguments.warm_up),
        "--warm-up must be less than --seconds"
    );
    Ok(())
}

async fn set_up(arguments: &BenchArguments) -> anyhow::Result<Setting<'_>> {
    let target = Target::new(&arguments.url, &arguments.family.family)?;
    let front = undominated(target.front().await?);
    let best = front.last().context("the family has no plan")?;
    let capacity = match arguments.capacity {
        Some(capacity) => capacity,
        None => {
            let samples = target.samples(false).await?;
            let message = Message::new(&samples[0], &json!({"plan": best.plan}));
            let warm_up = Duration::from_secs_f64(arguments.warm_up);
            capacity(&target, &message, NUM_CLIENTS, warm_up).await;
            let length = Duration::from_secs_f64(arguments.seconds.min(5.0));
            capacity(&target, &message, NUM_CLIENTS, length).await
        }
    };
    let mut policies = vec![TESSERA.to_owned()];
    match arguments.plans.as_slice() {
        [] if arguments.all_plans => policies.extend(spread(&front, front.len())),
        [] => policies.extend(spread(&front, arguments.fixed)),
        plans => policies.extend(plans.iter().cloned()),
    }
    say(&format!("`{}` answers {capacity:.0} requests a second", best.plan));
    let front = front.into_iter().map(|plan| plan.plan).collect();
    Ok(Setting { arguments, target, policies, front, capacity })
}

/// Returns the plans that are better than every cheaper one; the others are on the front because
/// they need less memory.
fn undominated(front: Vec<FrontPlan>) -> Vec<FrontPlan> {
    let mut best = f64::NEG_INFINITY;
    let is_better = |plan: &FrontPlan| {
        let is_better = plan.quality > best;
        best = best.max(plan.quality);
        is_better
    };
    front.into_iter().filter(is_better).collect()
}

/// Returns at most `count` plans spread along the front; two or more include its ends.
fn spread(front: &[FrontPlan], count: usize) -> Vec<String> {
    let count = count.min(front.len());
    let last = front.len().saturating_sub(1);
    let index = |step: usize| (step * last).checked_div(count.saturating_sub(1)).unwrap_or(last);
    (0..count).map(|step| front[index(step)].plan.clone()).collect()
}

/// Returns the kinds of traffic that are asked for.
async fn kinds(setting: &Setting<'_>) -> anyhow::Result<Vec<Kind>> {
    let Setting { arguments, target, .. } = setting;
    let mut kinds = Vec::new();
    for (name, arrivals, is_heavy_tailed) in traffic(arguments)? {
        let samples = target.samples(is_heavy_tailed).await?;
        let has_lengths = !is_heavy_tailed || samples.len() > 1;
        anyhow::ensure!(has_lengths, "--traffic {name} is for families that read texts");
        kinds.push(Kind { name, arrivals, samples });
    }
    Ok(kinds)
}

/// Returns names and arrivals of the traffic that is asked for, and whether its lengths are
/// heavy-tailed.
fn traffic(arguments: &BenchArguments) -> anyhow::Result<Vec<(String, Arrivals, bool)>> {
    if let Some(path) = &arguments.trace {
        return Ok(vec![("trace".to_owned(), Arrivals::read_trace(path)?, false)]);
    }
    let steady = || {
        let cv2 = arguments.cv2.iter();
        cv2.map(|cv2| (format!("CV² {cv2}"), Arrivals::Gamma { cv2: *cv2 }, false))
    };
    let pattern = |name: &str, pattern| vec![(name.to_owned(), Arrivals::Pattern(pattern), false)];
    let kinds = arguments.traffic.iter().flat_map(|traffic| match traffic {
        Traffic::Steady => steady().collect(),
        Traffic::Bursts => pattern("bursts", Pattern::Bursts),
        Traffic::Day => pattern("day", Pattern::Day),
        Traffic::Flood => pattern("flood", Pattern::Flood),
        Traffic::Lengths => vec![("lengths".to_owned(), Arrivals::Gamma { cv2: 1.0 }, true)],
    });
    Ok(kinds.collect())
}

/// A policy under one load, in one round.
#[derive(Clone, Copy)]
struct Turn<'a> {
    policy: &'a str,
    load: f64,
    round: u32,
}

/// Measures all policies under one load, in all rounds. The oracle reckons with the costs that the
/// server predicts right after it chose by itself.
async fn measure_all(setting: &Setting<'_>, kind: &Kind, load: f64) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut policies = setting.policies.clone();
    for round in 1..=setting.arguments.rounds {
        for policy in &policies {
            let turn = Turn { policy, load, round };
            rows.push(measure(setting, kind, turn).await);
            if policy == TESSERA && setting.arguments.budgets_ms.len() == 1 {
                let costs = costs(setting, kind).await?;
                rows.push(oracle(setting, kind, turn, &costs));
            }
        }
        if round == 1 {
            policies = promising(&rows);
        }
    }
    Ok(rows)
}

/// Returns what the server predicts for the lengths of the traffic.
async fn costs(setting: &Setting<'_>, kind: &Kind) -> anyhow::Result<Costs> {
    let mut tokens: Vec<usize> = kind.samples.iter().map(|sample| sample.tokens).collect();
    tokens.sort_unstable();
    tokens.dedup();
    Ok(setting.target.costs(&tokens, MOST_ROWS).await?)
}

/// Returns the arrivals of a load.
fn offsets(setting: &Setting<'_>, kind: &Kind, load: f64) -> Vec<Duration> {
    let BenchArguments { seconds, seed, .. } = setting.arguments;
    kind.arrivals.offsets(load * setting.capacity, Duration::from_secs_f64(*seconds), *seed)
}

/// Returns what a scheduler that knows all arrivals could have answered.
fn oracle(setting: &Setting<'_>, kind: &Kind, turn: Turn<'_>, costs: &Costs) -> Row {
    let Turn { load, round, .. } = turn;
    let warm_up = Duration::from_secs_f64(setting.arguments.warm_up);
    let budget = Duration::from_secs_f64(setting.arguments.budgets_ms[0] / 1e3);
    let asked = offsets(setting, kind, load).into_iter().zip(kind.samples.iter().cycle());
    let asked = asked.map(|(offset, sample)| Asked { offset, tokens: sample.tokens });
    let asked: Vec<Asked> = asked.filter(|request| request.offset >= warm_up).collect();
    let Bound { attainment, mean_quality } = bound(&asked, budget, costs);
    let measured = Measured { attainment, mean_quality, ..Measured::default() };
    let (policy, rate) = (ORACLE.to_owned(), load * setting.capacity);
    told(Row { policy, load, rate, traffic: kind.name.clone(), round, measured })
}

/// Measures a policy under one load, in one round.
async fn measure(setting: &Setting<'_>, kind: &Kind, turn: Turn<'_>) -> Row {
    let Turn { policy, load, round } = turn;
    let Setting { arguments, target, capacity, .. } = setting;
    let message = |sample: &Sample, budget: &f64| {
        let parameters = match policy {
            TESSERA => json!({"latency_budget_ms": budget}),
            plan => json!({"latency_budget_ms": budget, "plan": plan}),
        };
        (Message::new(sample, &parameters), Duration::from_secs_f64(budget / 1e3))
    };
    let messages = kind.samples.iter();
    let messages = messages
        .flat_map(|sample| arguments.budgets_ms.iter().map(move |budget| message(sample, budget)));
    let requests = Load {
        messages: messages.collect(),
        offsets: offsets(setting, kind, load),
        warm_up: Duration::from_secs_f64(arguments.warm_up),
        length: Duration::from_secs_f64(arguments.seconds),
    };
    let measured = drive(target, requests).await;
    let (policy, rate) = (policy.to_owned(), load * capacity);
    told(Row { policy, load, rate, traffic: kind.name.clone(), round, measured })
}

/// Prints a row, and returns it.
fn told(row: Row) -> Row {
    say(&line(&row));
    row
}

/// Returns the heading of a table of rows.
fn heading() -> String {
    format!(
        "{:>8} {:>5} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  policy",
        "traffic",
        "load",
        "req/s",
        "in time",
        "by srv",
        "late",
        "quality",
        "off p95",
        "refused",
        "p50 ms",
        "p99 ms",
        "ref p99"
    )
}

/// Writes a row of the table.
fn line(Row { policy, load, rate, traffic, measured, .. }: &Row) -> String {
    let refused = measured.refused;
    let mut text = format!(
        "{traffic:>8} {load:>5} {rate:>7.0} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.3} {refused:>8} \
         {:>8.2} {:>8.2} {:>8.2}  {policy}",
        measured.attainment,
        measured.server_attainment,
        measured.violations,
        measured.mean_quality,
        measured.prediction_error.p95,
        measured.latency_ms.p50,
        measured.latency_ms.p99,
        measured.refusal_ms.p99,
    );
    if measured.failed > 0 {
        text += &format!("  {} failed", measured.failed);
    }
    text
}
