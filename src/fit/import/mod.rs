//! Importing ONNX exports of image networks as a new family.
//!
//! The importer finds cut points and learns shapes by running the export. It rewrites the export so
//! that its pieces can run alone. It accepts the result only if the joined pieces agree with the
//! original. A family is built in a scratch folder and then renamed, so it is never half-imported.

mod manifest;
mod options;
mod preprocessor;

pub use options::ImportOptions;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{
    FitError, Progress,
    independence::{Subject, prove_family},
    probes,
    wave::wave,
};
use crate::{
    assembly::Family,
    family::{MANIFEST_FILE, PlanId},
    input::{ModelInput, Pixels},
    onnx::{
        Articulations, Extents, OnnxError, articulations, check_repeatable, embed_weights,
        fix_shapes,
        proto::{ModelProto, ValueInfoProto, data_type},
        read_model, shape_reads,
    },
    pool::{Disk, FileSystem, lock, sweep, sync},
    runtime::{Executor, Runtime, SideInputs, WholeModel},
    tensor::{Tensor, TensorData, chain, hex},
};
use manifest::{Imported, manifest};

/// Prefix of the names of scratch folders.
const SCRATCH: &str = ".import-";

/// Largest accepted difference between joined pieces and the original. It is relative to the
/// largest score, or to 1 if that is larger.
const TOLERANCE: f64 = 1e-5;

/// Findings about one export.
#[derive(Debug, Clone)]
pub struct ImportReport {
    /// Name of the anchor.
    pub anchor: String,
    /// Number of nodes.
    pub num_nodes: usize,
    /// Number of blocks.
    pub num_blocks: usize,
    /// Name of the output that the family gives, the first of the export.
    pub output: String,
    /// Names of the other outputs, which the family lacks.
    pub left_out: Vec<String>,
    /// Largest difference between the joined pieces and the original, relative to the largest score
    /// or 1.
    pub difference: f64,
}

/// Imports exports as a new family of the pool in the folder `pool`.
///
/// # Errors
///
/// Fails when the family exists already, or an export cannot be read, cut or run. Fails when an
/// export draws random numbers or mixes the images of a batch. Fails when exports disagree, or
/// joined pieces differ from the original. The error names the file and the node or tensor.
pub fn import(
    runtime: &Runtime,
    pool: &Path,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Vec<ImportReport>, FitError> {
    let place = pool.join(&options.family);
    if place.exists() {
        let message = "there is such a family already; remove it or choose another name".into();
        return Err(FitError::Malformed { path: place, message });
    }
    let scratch = scratch(pool)?;
    let folder = scratch.folder.path().join(&options.family);
    progress.phase("import", 2 * options.files.len() as u64);
    let mut anchors: Vec<Imported> = Vec::new();
    for file in &options.files {
        let anchor = take_apart(runtime, &folder, file, options)?;
        if let Some(first) = anchors.first() {
            check_agreement(first, &anchor)?;
        }
        if anchors.iter().any(|known| known.name == anchor.name) {
            let message = format!("gives the anchor `{}`, which another file gives", anchor.name);
            return Err(FitError::Malformed { path: file.clone(), message });
        }
        anchors.push(anchor);
        progress.step();
    }
    let text = manifest(options, &anchors)?;
    let path = folder.join(MANIFEST_FILE);
    fs::write(&path, text).map_err(|reason| FitError::File { path, reason })?;
    let family = Arc::new(Family::load(&folder)?);
    prove_family(runtime, &family, &mut BTreeSet::new(), progress)?;
    let mut reports = Vec::new();
    for anchor in &anchors {
        let difference = compare(runtime, &family, anchor, options)?;
        reports.push(ImportReport {
            anchor: anchor.name.clone(),
            num_nodes: anchor.num_nodes,
            num_blocks: anchor.cuts.len() - 1,
            output: anchor.output.clone(),
            left_out: anchor.left_out.clone(),
            difference,
        });
        progress.step();
    }
    let named = sync_all(&folder).and_then(|()| FileSystem.rename(&folder, &place));
    named.map_err(|reason| FitError::File { path: place, reason })?;
    Ok(reports)
}

/// Scratch folder in which a family is built.
struct Scratch {
    folder: TempDir,
    /// Lock that keeps other runs from removing the folder as a leftover.
    _lock: Option<File>,
}

/// Creates a scratch folder in the pool, and removes those that killed runs have left.
fn scratch(pool: &Path) -> Result<Scratch, FitError> {
    let wrap = |reason| FitError::File { path: pool.to_owned(), reason };
    sweep(&FileSystem, pool, SCRATCH);
    let folder = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(pool).map_err(wrap)?;
    let held = File::open(folder.path()).map_err(wrap)?;
    let is_locked = lock(&held).unwrap_or(false);
    Ok(Scratch { folder, _lock: is_locked.then_some(held) })
}

/// Waits until everything below `folder` is on disk.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync_all(&path)? } else { sync(&path)? }
    }
    // Some file systems cannot sync a folder.
    drop(sync(folder));
    Ok(())
}

/// Reads an export; its weights lie in files of the returned folder.
fn read(file: &Path) -> Result<(&Path, ModelProto), FitError> {
    let folder = folder_of(file);
    let model = read_model(folder, file.file_name().unwrap_or_default().as_ref());
    Ok((folder, model.map_err(|e| malformed(file, &e))?))
}

fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn malformed(file: &Path, error: &OnnxError) -> FitError {
    FitError::Malformed { path: file.to_owned(), message: chain(error) }
}

/// Finds the cuts and shapes of one export, and writes it as an anchor.
fn take_apart(
    runtime: &Runtime,
    folder: &Path,
    file: &Path,
    options: &ImportOptions,
) -> Result<Imported, FitError> {
    let (source, mut model) = read(file)?;
    let wrap = |e: OnnxError| malformed(file, &e);
    let name = anchor_name(file);
    let (input, image) = image_input(&model, file, options.one_by_one)?;
    check_output(&model, file)?;
    check_repeatable(&model).map_err(wrap)?;
    check_independence(runtime, &model, &input, file, options.one_by_one)?;
    let Articulations { all, cuts: proposed } =
        proposed_cuts(&model, &input, file, options.cuts.get(&name))?;
    let outputs = model.graph.iter().flat_map(|graph| &graph.output);
    let mut outputs = outputs.map(|output| output.name.clone());
    let output = outputs.next().unwrap_or_default();
    let left_out = outputs.collect();
    let reads = shape_reads(&model);
    let wanted: HashSet<&String> = reads.iter().chain(&proposed).chain([&output]).collect();
    let wanted: Vec<String> = wanted.into_iter().cloned().collect();
    let mut whole = WholeModel::load(runtime, source, &file.to_string_lossy(), &model, &wanted)?;
    let mut shapes =
        |batch: usize| whole.shapes(&[(&input, &random_images(batch, image))], &wanted);
    let one = shapes(1)?;
    let other = if options.one_by_one { one.clone() } else { shapes(2)? };
    let known = extents(&wanted, one, other);
    if !reads.is_empty() {
        fix_shapes(&mut model, &input, &known).map_err(wrap)?;
    }
    let (cuts, shapes) = usable(&proposed, &known, options.one_by_one);
    if cuts.len() < 2 {
        return Err(too_few_cuts(file, cuts.len(), &all));
    }
    let width = num_classes(&output, &known, file)?;
    declare(&mut model, &output, width);
    embed_weights(&mut model, source).map_err(wrap)?;
    let num_nodes = model.graph.as_ref().map_or(0, |graph| graph.node.len());
    let bytes = model.encode_to_vec();
    let location = PathBuf::from("anchors").join(&name).join("model.onnx");
    write(&folder.join(&location), &bytes)?;
    let sha256 = hex(&Sha256::digest(&bytes));
    let original = file.to_owned();
    Ok(Imported {
        name,
        original,
        location,
        sha256,
        input,
        output,
        left_out,
        image,
        width,
        cuts,
        shapes,
        num_nodes,
        one_by_one: options.one_by_one,
    })
}

/// Checks that the output of an export is declared to be f32, or of no type.
fn check_output(model: &ModelProto, file: &Path) -> Result<(), FitError> {
    let declared = model.graph.iter().flat_map(|graph| &graph.output).next();
    let other = declared.and_then(|output| Some((&output.name, output.element_type()?)));
    let Some((name, other)) = other.filter(|(_, other)| *other != data_type::FLOAT) else {
        return Ok(());
    };
    let found = data_type::name(other);
    let message = format!("output `{name}` is {found}, but scores in FLOAT are needed");
    Err(FitError::Malformed { path: file.to_owned(), message })
}

/// Returns the number of classes for which `output` has scores.
fn num_classes(
    output: &str,
    known: &HashMap<String, Extents>,
    file: &Path,
) -> Result<usize, FitError> {
    match known.get(output).map(|[one, _]| one.as_slice()) {
        Some([_, classes]) => Ok(*classes),
        other => {
            let found = other.unwrap_or_default();
            let message = format!(
                "output `{output}` is {found:?} for one image, but [batch, classes] is needed"
            );
            Err(FitError::Malformed { path: file.to_owned(), message })
        }
    }
}

/// Returns the error for an export that is left with `num_cuts` cuts. All that its output depends
/// on passes through each tensor in `all`.
fn too_few_cuts(file: &Path, num_cuts: usize, all: &[String]) -> FitError {
    let hint = match all {
        [] | [_] => {
            let known = if all.is_empty() { "none" } else { "one" };
            format!("everything passes through {known} of its tensors; its input may be read late")
        }
        _ => "name cuts with --cut".to_owned(),
    };
    let message = format!("has {num_cuts} usable cuts, but a stem and a block are needed; {hint}");
    FitError::Malformed { path: file.to_owned(), message }
}

/// Returns the tensors at which an export can be cut, and those at which it is to be: those in
/// `named`, or those found.
fn proposed_cuts(
    model: &ModelProto,
    input: &str,
    file: &Path,
    named: Option<&Vec<String>>,
) -> Result<Articulations, FitError> {
    let found = articulations(model, input).map_err(|error| malformed(file, &error))?;
    let is_odd = |cut: &&String| !found.all.contains(*cut);
    if let Some(odd) = named.and_then(|cuts| cuts.iter().find(is_odd)) {
        let known = found.all.join(", ");
        let message =
            format!("`{odd}` is not a tensor that everything passes through; these are: {known}");
        return Err(FitError::Malformed { path: file.to_owned(), message });
    }
    let cuts = named.unwrap_or(&found.cuts).clone();
    Ok(Articulations { cuts, ..found })
}

/// Checks that no image changes the answer for another one of its batch, and that answers can be
/// repeated.
fn check_independence(
    runtime: &Runtime,
    model: &ModelProto,
    input: &str,
    file: &Path,
    one_by_one: bool,
) -> Result<(), FitError> {
    let (folder, name) = (folder_of(file), file.to_string_lossy());
    let graph = model.graph.as_ref();
    let declared = graph.and_then(|graph| graph.input.iter().find(|known| known.name == input));
    let rows = declared.and_then(|declared| probes::rows(declared, 1, 1));
    let rows: Vec<_> = rows.map(|rows| (input.to_owned(), rows)).into_iter().collect();
    let output = graph.and_then(|graph| graph.output.first());
    let output = output.map(|output| output.name.as_str()).unwrap_or_default();
    let subject = Subject { folder, name: &name, model, output, one_by_one, rows: &rows };
    match subject.fault(runtime)? {
        Some(fault) => Err(malformed(file, &fault)),
        None => Ok(()),
    }
}

/// Pairs the extents of tensors for one image with those for another number of images.
fn extents(
    wanted: &[String],
    one: Vec<Option<Vec<usize>>>,
    other: Vec<Option<Vec<usize>>>,
) -> HashMap<String, Extents> {
    let pairs = wanted.iter().zip(one.into_iter().zip(other));
    pairs.filter_map(|(name, (one, other))| Some((name.clone(), [one?, other?]))).collect()
}

/// Returns the name of the graph's image input, and its channels, height and width.
fn image_input(
    model: &ModelProto,
    file: &Path,
    one_by_one: bool,
) -> Result<(String, [usize; 3]), FitError> {
    let refuse = |message: String| FitError::Malformed { path: file.to_owned(), message };
    let inputs: Vec<_> = model.graph.iter().flat_map(|graph| &graph.input).collect();
    let [input] = inputs[..] else {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(refuse(format!("has the inputs {}, but one is needed", names.join(", "))));
    };
    if let Some(other) = input.element_type().filter(|other| *other != data_type::FLOAT) {
        let found = data_type::name(other);
        return Err(refuse(format!("input `{}` is {found}, but FLOAT is needed", input.name)));
    }
    let extents = input.extents().unwrap_or_default();
    if let [_, Some(channels), _, _] = extents[..]
        && !matches!(channels, 1 | 3)
    {
        return Err(refuse(format!(
            "input `{}` has {channels} channels in {extents:?}, but [batch, channels, height, \
             width] with 1 or 3 channels is needed",
            input.name
        )));
    }
    match extents[..] {
        [None, Some(channels), Some(height), Some(width)] => {
            Ok((input.name.clone(), [channels, height, width]))
        }
        [Some(1), Some(channels), Some(height), Some(width)] if one_by_one => {
            Ok((input.name.clone(), [channels, height, width]))
        }
        [Some(1), Some(_), Some(_), Some(_)] => Err(refuse(format!(
            "input `{}` is made for one image; `--one-by-one` runs one at a time",
            input.name
        ))),
        _ => Err(refuse(format!(
            "input `{}` is {extents:?} (`None` where it varies), but [batch, channels, height, \
             width] is needed, with the batch alone varying",
            input.name
        ))),
    }
}

/// Keeps the cuts whose tensors have the batch first and fixed extents after it. With `one_by_one`,
/// both extents are those of one image.
fn usable(
    proposed: &[String],
    known: &HashMap<String, Extents>,
    one_by_one: bool,
) -> (Vec<String>, Vec<Vec<usize>>) {
    let batches = (1, if one_by_one { 1 } else { 2 });
    let usable = proposed.iter().filter_map(|cut| {
        let [one, two] = known.get(cut)?;
        let (first, rest) = one.split_first()?;
        let (second, others) = two.split_first()?;
        let is_batch = (*first, *second) == batches && rest == others && !rest.is_empty();
        is_batch.then(|| (cut.clone(), rest.to_vec()))
    });
    usable.unzip()
}

/// Writes the output's shape into the model, because some exports lack it.
fn declare(model: &mut ModelProto, output: &str, width: usize) {
    let shape = [None, i64::try_from(width).ok()];
    if let Some(graph) = &mut model.graph {
        graph.output = vec![ValueInfoProto::tensor(output, data_type::FLOAT, &shape)];
        graph.value_info.clear();
    }
}

/// Checks that two exports read images of one shape and score the same number of classes.
fn check_agreement(one: &Imported, other: &Imported) -> Result<(), FitError> {
    let (read, written) = ((one.image, one.width), (other.image, other.width));
    if read == written {
        return Ok(());
    }
    let say = |(image, width): ([usize; 3], usize)| format!("{image:?} to {width} classes");
    let message =
        format!("maps {}, but {} maps {}", say(written), one.original.display(), say(read));
    Err(FitError::Malformed { path: other.original.clone(), message })
}

/// Runs the joined pieces and the original, and returns their largest difference.
fn compare(
    runtime: &Runtime,
    family: &Arc<Family>,
    anchor: &Imported,
    options: &ImportOptions,
) -> Result<f64, FitError> {
    let (source, model) = read(&anchor.original)?;
    let wanted = [anchor.output.clone()];
    let name = anchor.original.to_string_lossy();
    let mut whole = WholeModel::load(runtime, source, &name, &model, &wanted)?;
    let executor = Executor::new(runtime.clone(), family.clone());
    let plan = format!("{}[0..{}]", anchor.name, anchor.cuts.len() - 1);
    let plan = PlanId::parse(&family.graph, &plan)?;
    let mut largest = 0.0_f64;
    let batches: &[usize] = if options.one_by_one { &[1] } else { &[1, 3] };
    let random: Vec<Tensor> =
        batches.iter().map(|batch| random_images(*batch, anchor.image)).collect();
    for images in random.iter().chain(&options.probes) {
        let expected = whole.run(&[(&anchor.input, images)], &wanted)?.pop();
        let values = images.floats().to_vec();
        let pixels = ModelInput::Pixels(Pixels { shape: anchor.image, values });
        let found = executor.run(&plan, &SideInputs::of_input(pixels)?, &mut ())?;
        let expected = expected.as_ref().map_or(&[][..], Tensor::floats);
        let found = found.first().map_or(&[][..], Tensor::floats);
        let scale = expected.iter().fold(1.0_f32, |scale, score| scale.max(score.abs()));
        let differences = found.iter().zip(expected);
        let differences =
            differences.map(|(found, expected)| f64::from((found - expected).abs() / scale));
        // A NaN must not pass for a small difference.
        let differences = differences.map(|d| if d.is_nan() { f64::INFINITY } else { d });
        largest = differences.fold(largest, f64::max);
        if found.len() != expected.len() || largest > TOLERANCE {
            let message = format!("joined again it differs by {largest:.1e}, over {TOLERANCE:.0e}");
            return Err(FitError::Malformed { path: anchor.original.clone(), message });
        }
    }
    Ok(largest)
}

fn random_images(batch: usize, image: [usize; 3]) -> Tensor {
    let shape = vec![batch, image[0], image[1], image[2]];
    let values = (0..shape.iter().product()).map(wave).collect();
    Tensor::new(shape, TensorData::F32(values)).expect("as many values as the shape holds")
}

/// Returns the anchor's name for a file.
fn anchor_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    stem.chars().map(plain).collect()
}

fn write(path: &Path, content: &[u8]) -> Result<(), FitError> {
    let wrap = |reason| FitError::File { path: path.to_owned(), reason };
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(wrap)?;
    fs::write(path, content).map_err(wrap)
}
