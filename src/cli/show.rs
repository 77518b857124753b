//! The `plan` and `front` commands.

use std::sync::Arc;

use super::{
    args::{Common, FrontArguments, PlanArguments},
    progress::say,
    setup,
};
use crate::{
    app::{family_of, quality_of},
    assembly::Family,
    family::ModuleKind,
    offer::{QualityRecords, broken_promises, plan_table},
    picture::{FrontPoint, PointKind, front_svg},
    plan::{BudgetParameters, PlanEntry, PlanTable, QualitySource, Shape},
    pool::write_atomically,
    telemetry,
    tensor::ByteSize,
};

/// Prints the plan that a budget gets.
pub(super) fn plan(common: &Common, arguments: &PlanArguments) -> anyhow::Result<()> {
    let (_, _, table) = table(common, &arguments.family.family)?;
    let budget = BudgetParameters {
        latency_budget_ms: arguments.latency_budget_ms,
        memory_budget_mb: arguments.memory_budget_mb,
        min_quality: arguments.min_quality,
        plan: arguments.plan.clone(),
    }
    .parse()?;
    let shape = arguments.shape.shape();
    let choice = table.choose(shape, &budget)?;
    say(&header());
    say(&row(choice.entry, shape));
    Ok(())
}

/// Prints the Pareto front as a table or as JSON, and draws it if a file is named.
pub(super) fn front(common: &Common, arguments: &FrontArguments) -> anyhow::Result<()> {
    let (family, quality, table) = table(common, &arguments.family.family)?;
    let shape = arguments.shape.shape();
    let table = if arguments.measured { measured_only(&table)? } else { table };
    let front = table.front(shape);
    let broken = broken_promises(&family.graph, &table, &quality, shape);
    if let Some(path) = &arguments.svg {
        let picture = picture(&family, &table, &front, shape);
        write_atomically(path, picture.as_bytes())?;
    }
    if arguments.json {
        let plans: Vec<_> = front.iter().map(|entry| json(entry, shape)).collect();
        let document = serde_json::json!({
            "family": family.manifest.name,
            "metric": family.manifest.quality.metric,
            "batch": shape.batch,
            "tokens": shape.tokens,
            "plans": plans,
            "broken_promises": broken.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        say(&serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    say(&header());
    front.iter().for_each(|entry| say(&row(entry, shape)));
    if let (Some(first), Some(last)) = (front.first(), front.last()) {
        let at = |entry: &PlanEntry| entry.latency_seconds_at(shape);
        let span = at(last) / at(first);
        say(&format!("{} plans, dearest ÷ cheapest {span:.1}", front.len()));
    }
    broken.iter().for_each(|promise| say(&format!("broken promise: {promise}")));
    Ok(())
}

/// Returns a family, the qualities of its plans and their table on this machine.
pub(super) fn table(
    common: &Common,
    name: &str,
) -> anyhow::Result<(Arc<Family>, QualityRecords, PlanTable)> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let machine = setup::machine(common)?;
    let family = family_of(&common.pool, name)?;
    let profile = setup::profile(&machine, &family)?;
    let quality = quality_of(&family)?;
    let table = plan_table(&family, &profile, &quality, 0.0)?;
    Ok((family, quality, table))
}

/// Returns the plans of `table` whose quality was measured.
pub(super) fn measured_only(table: &PlanTable) -> anyhow::Result<PlanTable> {
    let measured = |entry: &&PlanEntry| entry.quality.source == QualitySource::Measured;
    let entries = table.entries().iter().filter(measured).cloned().collect();
    Ok(PlanTable::new(entries, 0.0)?)
}

fn header() -> String {
    format!("{:>10} {:>9} {:>8}  plan", "latency", "memory", "quality")
}

fn row(entry: &PlanEntry, shape: Shape) -> String {
    let (milliseconds, memory) = costs(entry, shape);
    let mark = match entry.quality.source {
        QualitySource::Measured => ' ',
        QualitySource::Predicted => '~',
    };
    let quality = entry.quality.value;
    format!("{milliseconds:>7.2} ms {memory:>6.1} MB {mark}{quality:>7.4}  {}", entry.id)
}

fn json(entry: &PlanEntry, shape: Shape) -> serde_json::Value {
    let (milliseconds, memory) = costs(entry, shape);
    serde_json::json!({
        "plan": entry.id,
        "predicted_latency_ms": milliseconds,
        "memory_mb": memory,
        "quality": entry.quality.value,
        "quality_source": match entry.quality.source {
            QualitySource::Measured => "measured",
            QualitySource::Predicted => "predicted",
        },
    })
}

/// Returns the latency in milliseconds and the memory in megabytes of `entry` at `shape`.
fn costs(entry: &PlanEntry, shape: Shape) -> (f64, f64) {
    let memory = ByteSize(entry.memory_bytes_at(shape));
    (entry.latency_seconds_at(shape) * 1e3, memory.megabytes())
}

fn picture(family: &Family, table: &PlanTable, front: &[&PlanEntry], shape: Shape) -> String {
    let points: Vec<FrontPoint> = table
        .entries()
        .iter()
        .map(|entry| {
            let (latency_ms, memory_mb) = costs(entry, shape);
            FrontPoint {
                label: entry.id.clone(),
                latency_ms,
                quality: entry.quality.value,
                memory_mb,
                kind: kind_of(family, entry),
                measured: entry.quality.source == QualitySource::Measured,
                on_front: front.iter().any(|on_front| on_front.id == entry.id),
            }
        })
        .collect();
    let manifest = &family.manifest;
    let mut title = format!(
        "{}: {} over latency, batch {}",
        manifest.name,
        manifest.quality.metric.name(),
        shape.batch
    );
    if manifest.image.is_none() {
        title.push_str(&format!(", {} tokens", shape.tokens));
    }
    front_svg(&title, &points)
}

/// Returns the kind of a plan, from the modules that set it apart from an anchor.
fn kind_of(family: &Family, entry: &PlanEntry) -> PointKind {
    let mut kinds = Vec::new();
    let mut add = |kind| {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    };
    for id in &entry.plan.path {
        let module = family.graph.module(*id);
        let variant = module.variant.as_deref();
        match module.kind {
            ModuleKind::Stitch if family.is_fitted(*id) => add(PointKind::Fitted),
            ModuleKind::Stitch => add(PointKind::Stitched),
            ModuleKind::Bridge => add(PointKind::Bridged),
            ModuleKind::Merge => add(PointKind::Merged),
            ModuleKind::Exit if variant == Some("head") => add(PointKind::Shortened),
            ModuleKind::Exit => add(PointKind::Exit),
            _ => {}
        }
        match variant {
            _ if module.is_skip() => add(PointKind::Dropped),
            _ if module.is_int8() => add(PointKind::Quantized),
            Some(_) if matches!(module.kind, ModuleKind::Attention | ModuleKind::Mlp) => {
                add(PointKind::Narrowed);
            }
            _ => {}
        }
    }
    match kinds[..] {
        [] => PointKind::Anchor,
        [kind] => kind,
        _ => PointKind::Mixed,
    }
}
