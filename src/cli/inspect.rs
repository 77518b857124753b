//! The `inspect` command.

use super::{
    args::{Common, InspectArguments},
    progress::say,
};
use crate::{
    app::family_of,
    assembly::Family,
    family::{ModuleId, PlanId, SpaceId},
    picture::{dot, mermaid},
    telemetry,
    tensor::ByteSize,
};

/// Shows the modules of a family, or of one plan of it.
pub(super) fn inspect(common: &Common, arguments: &InspectArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let family = family_of(&common.pool, &arguments.family.family)?;
    let modules: Vec<ModuleId> = match &arguments.plan {
        Some(plan) => PlanId::parse(&family.graph, plan)?.path,
        None => (0..family.graph.modules().len()).map(ModuleId).collect(),
    };
    let text = match arguments {
        InspectArguments { json: true, .. } => json(&family, &modules)?,
        InspectArguments { dot: true, .. } => dot(&family, &modules),
        InspectArguments { mermaid: true, .. } => mermaid(&family, &modules),
        _ => table(&family, &modules),
    };
    say(text.trim_end());
    Ok(())
}

fn space(family: &Family, id: SpaceId) -> &str {
    &family.graph.spaces()[id.0].name
}

fn json(family: &Family, modules: &[ModuleId]) -> anyhow::Result<String> {
    let modules: Vec<_> = modules
        .iter()
        .map(|id| {
            let module = family.graph.module(*id);
            serde_json::json!({
                "name": module.name,
                "from": space(family, module.from),
                "to": space(family, module.to),
                "kind": format!("{:?}", module.kind),
                "variant": module.variant,
                "weight_bytes": family.weight_bytes(*id),
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&modules)?)
}

fn table(family: &Family, modules: &[ModuleId]) -> String {
    let mut text = format!("{}: {}\n", family.manifest.name, family.manifest.description);
    let heading = ["module", "from", "to", "kind"];
    let [module, from, to, kind] = heading;
    text.push_str(&format!("{module:34} {from:8} {to:8} {kind:10} {:>10}\n", "weights"));
    for id in modules {
        let module = family.graph.module(*id);
        text.push_str(&format!(
            "{:34} {:8} {:8} {:10} {:>10}\n",
            module.name,
            space(family, module.from),
            space(family, module.to),
            format!("{:?}", module.kind).to_lowercase(),
            ByteSize(family.weight_bytes(*id)).to_string()
        ));
    }
    text
}
