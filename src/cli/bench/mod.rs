//! The `bench` command: policies under load, side by side.

mod chart;
mod compare;
mod row;

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    args::{Common, bench::BenchArguments},
    progress::{Bars, say},
};
use crate::{
    bench::{Arrivals, FrontPlan, Load, Message, Target, capacity, drive},
    fit::Progress,
    pool::write_atomically,
};
use compare::{compare, describe};
use row::{Row, TESSERA};

/// Number of clients that send requests at once while the capacity is measured.
const NUM_CLIENTS: usize = 16;

/// Settings that all loads share.
struct Setting<'a> {
    arguments: &'a BenchArguments,
    target: Target,
    inputs: (Value, Bytes),
    policies: Vec<String>,
    capacity: f64,
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
    let mut rows = Vec::new();
    let arrivals = arrivals(arguments)?;
    let bars = Bars::default();
    let num_loads = arrivals.len() * arguments.loads.len() * setting.policies.len();
    bars.phase("loads", u64::try_from(num_loads).unwrap_or(u64::MAX));
    for arrivals in &arrivals {
        for load in &arguments.loads {
            for policy in &setting.policies {
                rows.push(tokio.block_on(measure(&setting, arrivals, *load, policy)));
                bars.step();
            }
        }
    }
    drop(bars);
    say(&table(&rows));
    let comparisons = compare(&rows);
    comparisons.iter().for_each(|comparison| say(&describe(comparison)));
    if let Some(path) = &arguments.json {
        let document = json!({
            "family": arguments.family.family,
            "budgets_ms": arguments.budgets_ms,
            "capacity": setting.capacity,
            "seconds": arguments.seconds,
            "warm_up": arguments.warm_up,
            "rows": rows,
            "comparisons": comparisons,
        });
        write_atomically(path, serde_json::to_string_pretty(&document)?.as_bytes())?;
    }
    if let Some(path) = &arguments.svg {
        let title =
            format!("{}: {:.0} requests/s at load 1", arguments.family.family, setting.capacity);
        write_atomically(path, chart::draw(&title, &rows)?.as_bytes())?;
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
    let front = target.front().await?;
    let inputs = target.inputs().await?;
    let best = front.last().context("the family has no plan")?;
    let capacity = match arguments.capacity {
        Some(capacity) => capacity,
        None => {
            let message = Message::new(&inputs.0, &inputs.1, &json!({"plan": best.plan}));
            let warm_up = Duration::from_secs_f64(arguments.warm_up);
            capacity(&target, &message, NUM_CLIENTS, warm_up).await;
            let length = Duration::from_secs_f64(arguments.seconds.min(5.0));
            capacity(&target, &message, NUM_CLIENTS, length).await
        }
    };
    let mut policies = vec![TESSERA.to_owned()];
    match arguments.plans.as_slice() {
        [] => policies.extend(spread(&front, arguments.fixed)),
        plans => policies.extend(plans.iter().cloned()),
    }
    say(&format!("`{}` answers {capacity:.0} requests a second", best.plan));
    Ok(Setting { arguments, target, inputs, policies, capacity })
}

/// Returns at most `count` plans spread along the front; two or more include its ends.
fn spread(front: &[FrontPlan], count: usize) -> Vec<String> {
    let count = count.min(front.len());
    let last = front.len().saturating_sub(1);
    let index = |step: usize| (step * last).checked_div(count.saturating_sub(1)).unwrap_or(last);
    (0..count).map(|step| front[index(step)].plan.clone()).collect()
}

fn arrivals(arguments: &BenchArguments) -> anyhow::Result<Vec<Arrivals>> {
    match &arguments.trace {
        Some(path) => Ok(vec![Arrivals::read_trace(path)?]),
        None => Ok(arguments.cv2.iter().map(|cv2| Arrivals::Gamma { cv2: *cv2 }).collect()),
    }
}

async fn measure(setting: &Setting<'_>, arrivals: &Arrivals, load: f64, policy: &str) -> Row {
    let Setting { arguments, target, inputs, capacity, .. } = setting;
    let length = Duration::from_secs_f64(arguments.seconds);
    let rate = load * capacity;
    let message = |budget: &f64| {
        let parameters = match policy {
            TESSERA => json!({"latency_budget_ms": budget}),
            plan => json!({"latency_budget_ms": budget, "plan": plan}),
        };
        (Message::new(&inputs.0, &inputs.1, &parameters), Duration::from_secs_f64(budget / 1e3))
    };
    let load_of = Load {
        messages: arguments.budgets_ms.iter().map(message).collect(),
        offsets: arrivals.offsets(rate, length, arguments.seed),
        warm_up: Duration::from_secs_f64(arguments.warm_up),
        length,
    };
    let measured = drive(target, load_of).await;
    let cv2 = match arrivals {
        Arrivals::Gamma { cv2 } => Some(*cv2),
        Arrivals::Trace(_) => None,
    };
    Row { policy: policy.to_owned(), load, rate, cv2, measured }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:>5} {:>5} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  policy",
        "cv2",
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
    );
    for Row { policy, load, rate, cv2, measured } in rows {
        let cv2 = cv2.map_or("trace".to_owned(), |cv2| cv2.to_string());
        let refused = measured.refused;
        text += &format!(
            "\n{cv2:>5} {load:>5} {rate:>7.0} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.3} {refused:>8} \
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
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_front_are_among_the_fixed_plans() {
        let plan = |name: &str| FrontPlan {
            plan: name.to_owned(),
            predicted_latency_ms: 1.0,
            quality: 1.0,
        };
        let front: Vec<FrontPlan> = ["a", "b", "c", "d", "e"].map(plan).to_vec();
        assert_eq!(spread(&front, 3), ["a", "c", "e"]);
        assert_eq!(spread(&front, 9), ["a", "b", "c", "d", "e"]);
        assert_eq!(spread(&front, 1), ["e"]);
        assert_eq!(spread(&front, 0), Vec::<String>::new());
    }
}
