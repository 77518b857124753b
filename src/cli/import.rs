//! The `import` command.

use std::{collections::HashMap, time::Instant};

use anyhow::{Context, ensure};

use super::{
    args::{Common, ImportArguments},
    progress::{Bars, say},
    setup,
};
use crate::{
    fit::ImportOptions,
    telemetry,
    tensor::{FileKind, read_text},
};

/// Makes a family from ONNX exports.
pub(super) fn import(common: &Common, arguments: &ImportArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    ensure!(
        !arguments.family.is_empty() && arguments.family.chars().all(is_plain),
        "--family is `{}`, but a name is letters, digits, `_` and `-`",
        arguments.family
    );
    let mut cuts: HashMap<String, Vec<String>> = HashMap::new();
    for cut in &arguments.cuts {
        let (anchor, tensor) =
            cut.split_once('=').with_context(|| format!("--cut is `{cut}`, not ANCHOR=TENSOR"))?;
        cuts.entry(anchor.into()).or_default().push(tensor.into());
    }
    let labels = match &arguments.labels {
        None => Vec::new(),
        Some(path) => {
            let text = read_text(path, FileKind::Labels)
                .with_context(|| format!("{}: cannot be read", path.display()))?;
            text.lines().map(|line| line.trim().to_owned()).collect()
        }
    };
    let options = ImportOptions {
        family: arguments.family.clone(),
        files: arguments.files.clone(),
        cuts,
        labels,
        preprocessor: arguments.preprocessor.clone(),
        license: arguments.license.clone(),
        one_by_one: arguments.one_by_one,
        probes: Vec::new(),
    };
    let machine = setup::machine(common)?;
    let start = Instant::now();
    let bars = Bars::default();
    let reports = crate::fit::import(machine.runtime(), &common.pool, &options, &bars)?;
    drop(bars);
    for report in &reports {
        say(&format!(
            "{}: {} nodes, {} blocks, joined again it differs by {:.1e}",
            report.anchor, report.num_nodes, report.num_blocks, report.difference
        ));
        if !report.left_out.is_empty() {
            let (anchor, output) = (&report.anchor, &report.output);
            let left_out = report.left_out.join("`, `");
            say(&format!("{anchor}: gives `{output}`; left out are its outputs `{left_out}`"));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let place = common.pool.join(&options.family);
    say(&format!("{} in {seconds:.1} s; next: fit, evaluate, serve", place.display()));
    Ok(())
}
