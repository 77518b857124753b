//! The `export` command.

use anyhow::ensure;

use super::{
    args::{Common, ExportArguments},
    progress::say,
    show,
};
use crate::{
    app::family_of, family::PlanId, fit::export_plan, plan::BudgetParameters,
    pool::write_atomically, telemetry, tensor::ByteSize,
};

/// Writes a plan's sub-network as one ONNX file.
pub(super) fn export(common: &Common, arguments: &ExportArguments) -> anyhow::Result<()> {
    let (family, plan) = match &arguments.plan {
        Some(plan) => {
            telemetry::start_logging(&common.log, common.log_format, None)?;
            let family = family_of(&common.pool, &arguments.family.family)?;
            let plan = PlanId::parse(&family.graph, plan)?;
            (family, plan)
        }
        None => {
            let budget = BudgetParameters {
                latency_budget_ms: arguments.latency_budget_ms,
                memory_budget_mb: arguments.memory_budget_mb,
                min_quality: arguments.min_quality,
                plan: None,
            }
            .parse()?;
            let (family, _, table) = show::table(common, &arguments.family.family)?;
            let choice = table.choose(arguments.shape.shape(), &budget)?;
            let plan = choice.entry.plan.clone();
            (family, plan)
        }
    };
    let is_file = arguments.output.extension().is_some_and(|extension| extension == "onnx");
    ensure!(is_file, "{}: the file's name must end in .onnx", arguments.output.display());
    let model = export_plan(&family, &plan)?;
    write_atomically(&arguments.output, &model)?;
    say(&format!(
        "{}: {} ({})",
        arguments.output.display(),
        PlanId::of(&family.graph, &plan),
        ByteSize(model.len() as u64)
    ));
    Ok(())
}
