//! The `fit`, `profile` and `evaluate` commands.

use std::path::Path;

use super::{
    args::{Common, DataArguments, EvaluateArguments, FitArguments, ProfileArguments},
    progress::{Bars, say, say_error},
    setup,
    show::measured_only,
};
use crate::{
    app::{Measured, family_of, quality_of, writer_of},
    assembly::Family,
    family::Manifest,
    fit::{Dataset, EvaluateOptions, ExpertOptions, FitOptions, check_corpora},
    offer::{Profile, QualityRecords, ShippedProfiles, plan_table},
    plan::Shape,
    pool::{FamilyWriter, FitRecords, write_atomically},
    runtime::Executor,
    telemetry,
};

/// Fits the maps of a family, or its experts.
pub(super) fn fit(common: &Common, arguments: &FitArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let machine = setup::machine(common)?;
    // The family need not load: its fits may be broken, and fitting replaces them.
    let mut writer = writer_of(&common.pool, &arguments.family.family)?;
    let manifest = Manifest::read(writer.folder())?;
    let data = Dataset::joined(read(&arguments.source, &manifest)?)?;
    let bars = Bars::default();
    if arguments.experts {
        let options = ExpertOptions {
            max_tokens: arguments.max_tokens,
            max_texts: arguments.token_texts,
            refit: arguments.refit,
            ..ExpertOptions::default()
        };
        let runtime = machine.runtime();
        let count = crate::fit::fit_experts(runtime, &mut writer, &data, &options, &bars)?;
        drop(bars);
        say(&format!("{count} anchors split among experts"));
        return Ok(());
    }
    let options = FitOptions {
        regularizations: arguments.regularizations.clone(),
        max_tokens: arguments.max_tokens,
        max_token_texts: arguments.token_texts,
        refit: arguments.refit,
    };
    let count = crate::fit::fit_maps(machine.runtime(), &mut writer, &data, &options, &bars)?;
    drop(bars);
    say(&format!("{count} maps fitted"));
    Ok(())
}

/// Measures the modules of a family and prints their run times.
pub(super) fn profile(common: &Common, arguments: &ProfileArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let machine = setup::machine(common)?;
    let family = family_of(&common.pool, &arguments.family.family)?;
    let Measured { profile, unkept } = setup::profile_again(&machine, &family, arguments.again)?;
    if let Some(folder) = machine.cache().filter(|_| unkept.is_none()) {
        say(&format!("{}", machine.key().file(folder).display()));
    }
    if let Some(out) = &arguments.out {
        let mut shipped = ShippedProfiles::read(out)?;
        shipped.add(setup::shipped(&machine, &family)?);
        shipped.write(out)?;
        say(&format!("{}", out.display()));
    }
    let is_image = family.manifest.image.is_some();
    let shapes = if is_image { [(1, 1), (4, 1), (16, 1)] } else { [(1, 32), (1, 128), (16, 128)] };
    let [a, b, c] = shapes.map(|(batch, tokens)| match is_image {
        true => format!("{batch} ms"),
        false => format!("{batch}×{tokens} ms"),
    });
    say(&format!("{:34} {a:>10} {b:>10} {c:>10}", "module"));
    for (index, module) in family.graph.modules().iter().enumerate() {
        if let Some(measured) = profile.module(crate::family::ModuleId(index)) {
            let at = |(batch, tokens)| measured.latency_seconds.at(batch, tokens) * 1e3;
            let [a, b, c] = shapes.map(at);
            say(&format!("{:34} {a:>10.3} {b:>10.3} {c:>10.3}", module.name));
        }
    }
    unkept.map_or(Ok(()), |error| {
        Err(anyhow::Error::new(error).context("the profile cannot be kept"))
    })
}

/// Place of the measured qualities.
enum Output<'a> {
    /// The family itself.
    Family(FamilyWriter),
    /// A file; the family stays as it is.
    Report(&'a Path),
}

/// Measures the quality of a family's plans, for the family or for a report.
pub(super) fn evaluate(common: &Common, arguments: &EvaluateArguments) -> anyhow::Result<()> {
    telemetry::start_logging(&common.log, common.log_format, None)?;
    let machine = setup::machine(common)?;
    let output = match &arguments.report {
        Some(report) => Output::Report(report),
        None => Output::Family(writer_of(&common.pool, &arguments.family.family)?),
    };
    let family = family_of(&common.pool, &arguments.family.family)?;
    let corpora = read(&arguments.source, &family.manifest)?;
    check_corpora(&corpora, &FitRecords::read(&family.folder)?)?;
    let profile = setup::profile(&machine, &family)?;
    let options = EvaluateOptions {
        max_tokens: arguments.max_tokens,
        plans_per_round: arguments.plans,
        max_rounds: arguments.rounds,
        command: command_of(arguments, &corpora),
    };
    let executor = Executor::new(machine.runtime().clone(), family.clone());
    let mut executor = executor.with_activations(profile.activations());
    let bars = Bars::default();
    let writer = match output {
        Output::Family(writer) => writer,
        Output::Report(path) => {
            let plans = match arguments.reported.as_slice() {
                [] => measured_front(&family, &profile)?,
                plans => plans.to_vec(),
            };
            let plans: Vec<&str> = plans.iter().map(String::as_str).collect();
            let report = crate::fit::report(&mut executor, &corpora, &plans, &options, &bars)?;
            drop(bars);
            write_atomically(path, text_of(&report).as_bytes())?;
            say(&format!("{} plans reported in {}", report.plans.len(), path.display()));
            return Ok(());
        }
    };
    let records = if arguments.again { QualityRecords::default() } else { quality_of(&family)? };
    let file = &family.manifest.quality.file;
    let write = |records: &QualityRecords| writer.replace(file, text_of(records).as_bytes());
    // What was measured before is replaced by everything that was measured again, not by a part.
    let mut save =
        |records: &QualityRecords| if arguments.again { Ok(()) } else { Ok(write(records)?) };
    let evaluation = crate::fit::Evaluation { profile: &profile, records, options: &options };
    let records = crate::fit::evaluate(&mut executor, &corpora, evaluation, &bars, &mut save)?;
    write(&records)?;
    drop(bars);
    say(&format!(
        "{} plans measured on {} {}; qualities are predicted to ±{:.3}",
        records.plans.len(),
        records.num_examples,
        corpora.first().map_or("examples", Dataset::examples),
        records.prediction_error
    ));
    Ok(())
}

fn text_of(records: &QualityRecords) -> String {
    serde_json::to_string_pretty(records).unwrap_or_default() + "\n"
}

/// Returns the ids of the measured plans that no other measured plan beats for a usual request.
fn measured_front(family: &Family, profile: &Profile) -> anyhow::Result<Vec<String>> {
    let table = measured_only(&plan_table(family, profile, &quality_of(family)?, 0.0)?)?;
    Ok(table.front(Shape::default()).into_iter().map(|entry| entry.id.clone()).collect())
}

/// Reads texts or images, as the family of `manifest` needs, and says what of them is left out.
fn read(source: &DataArguments, manifest: &Manifest) -> anyhow::Result<Vec<Dataset>> {
    let labels = source.labels.as_deref();
    anyhow::ensure!(
        labels.is_none() || source.data.len() == 1,
        "--labels goes with one file of images, but there are {}",
        source.data.len()
    );
    let mut all = Vec::new();
    for path in &source.data {
        let data = Dataset::read(path, labels, manifest, source.examples)?;
        if let [first, ..] = data.left_out() {
            say_error(&format!(
                "{}: left out, since they are not images: {}, such as {}",
                path.display(),
                data.left_out().len(),
                first.display()
            ));
        }
        all.push(data);
    }
    Ok(all)
}

/// Returns the command that measures the same qualities again.
fn command_of(arguments: &EvaluateArguments, corpora: &[Dataset]) -> String {
    let names: Vec<String> = corpora.iter().map(Dataset::name).collect();
    let mut command =
        format!("tessera evaluate --family {} --data {}", arguments.family.family, names.join(" "));
    if let Some(most) = corpora.iter().map(Dataset::len).max() {
        command = format!("{command} --examples {most}");
    }
    match corpora.first() {
        Some(Dataset::Texts(_)) => format!("{command} --max-tokens {}", arguments.max_tokens),
        Some(Dataset::Images(_)) | None => command,
    }
}
