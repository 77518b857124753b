//! Fitting a family's maps in closed form.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use half::f16;
use safetensors::{Dtype, tensor::TensorView};

use super::{
    FitError, Progress,
    data::dataset::Dataset,
    ridge::{Affine, Regression},
};
use crate::{
    assembly::Family,
    family::{FamilyGraph, MapForm, MapSpec, ModuleId, ModuleKind, PlanId, SpaceId, fit_file_name},
    input::ModelInput,
    plan::Shape,
    pool::{FamilyWriter, FitRecord, Staged, today},
    runtime::{Activation, Executor, Runtime, Scratch, SideInputs},
    tensor::{Tensor, TensorData},
};

/// Number of batches of which one is held out to judge a fit.
pub(super) const HELD_OUT: usize = 10;

/// Returns the least number of texts or images of which a batch is held out, in batches of `rows`.
pub(super) fn least_examples(rows: usize) -> usize {
    (HELD_OUT - 1) * rows + 1
}

/// Settings for fitting maps.
#[derive(Debug, Clone)]
pub struct FitOptions {
    /// Candidate ridges, relative to the mean of the features' squares. The fit takes the one that
    /// explains most variance of the held-out texts.
    pub regularizations: Vec<f64>,
    /// Number of tokens after which texts are cut.
    pub max_tokens: usize,
    /// Maximum number of texts for maps that read single tokens. Maps that read a whole sequence
    /// use all texts.
    pub max_token_texts: usize,
    /// Whether maps that are already fitted are fitted again.
    pub refit: bool,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            regularizations: vec![1e-4, 1e-3, 1e-2, 1e-1, 1.0],
            max_tokens: 128,
            max_token_texts: 1_500,
            refit: false,
        }
    }
}

/// Map while it is being fitted.
struct Fit {
    /// Position of the map among the family's feature networks.
    index: usize,
    map: MapSpec,
    /// Path to the map's start.
    prefix: Vec<ModuleId>,
    /// Path to the activations that the map should return.
    target: Vec<ModuleId>,
    sums: Option<[Regression; 2]>,
}

/// Fits the maps in the family's manifest whose file is missing or broken.
///
/// Maps that read the anchors' own hidden states are fitted in one pass over the texts. Maps that
/// are fitted on a plan's hidden states follow once the plan's own maps are fitted. All maps are
/// committed together after the last pass. Returns the number of maps fitted.
///
/// # Errors
///
/// Fails when the family cannot be loaded or run, or a file cannot be written.
pub fn fit_maps(
    runtime: &Runtime,
    writer: &mut FamilyWriter,
    data: &Dataset,
    options: &FitOptions,
    progress: &dyn Progress,
) -> Result<usize, FitError> {
    let before = writer.whole_records();
    let mut records = before.clone();
    if options.refit {
        records.maps.clear();
    }
    let mut num_fitted = 0;
    loop {
        let family = Arc::new(Family::load_with(writer.folder(), records.clone())?);
        let due = |map: &MapSpec| !records.maps.contains_key(&fit_file_name(map));
        let mut fits = due_fits(&family, due);
        if fits.is_empty() {
            break;
        }
        let executor = Executor::new(runtime.clone(), family.clone());
        let mut scratch = Scratch::new(&executor);
        gather(&mut scratch, data, options, &mut fits, progress)?;
        num_fitted += fits.len();
        for fit in &fits {
            let record = solve(writer, data, options, fit)?;
            progress.note(&format!(
                "{} to {}: held-out R² {:.3} on {} rows",
                fit.map.from, fit.map.to, record.held_out_r2, record.samples
            ));
            records.maps.insert(fit_file_name(&fit.map), record);
        }
    }
    if num_fitted > 0 {
        // Maps from and to missing anchors keep their fits.
        for (name, record) in before.maps {
            records.maps.entry(name).or_insert(record);
        }
        records.note_texts(&data.name(), data.digests());
        writer.commit(records)?;
    }
    Ok(num_fitted)
}

/// Returns the maps that are due and whose prefix already exists.
fn due_fits(family: &Family, due: impl Fn(&MapSpec) -> bool) -> Vec<Fit> {
    let graph = &family.graph;
    let maps = family.feature_networks().enumerate();
    maps.filter(|(_, (map, _))| due(map))
        .filter_map(|(index, (map, _))| {
            let (from, to) = (graph.space_named(&map.from)?, graph.space_named(&map.to)?);
            let prefix = match &map.fitted_on {
                Some(plan) => {
                    let path = PlanId::parse(graph, plan).ok()?.path;
                    let end = path.iter().position(|id| graph.module(*id).to == from)?;
                    path[..=end].to_vec()
                }
                None => own_path(graph, from)?,
            };
            let target = own_path(graph, to)?;
            Some(Fit { index, map: map.clone(), prefix, target, sums: None })
        })
        .collect()
}

/// Returns the path through one anchor's plain modules to `space`, or `None` if there is none.
pub(super) fn own_path(graph: &FamilyGraph, space: SpaceId) -> Option<Vec<ModuleId>> {
    let is_own = |kind| {
        use ModuleKind::{Attention, Block, Head, Mlp, Stem};
        matches!(kind, Stem | Block | Attention | Mlp | Head)
    };
    let mut path = Vec::new();
    let mut end = space;
    while end != graph.input() {
        let index = graph.modules().iter().position(|module| {
            module.to == end && module.variant.is_none() && is_own(module.kind)
        })?;
        path.push(ModuleId(index));
        end = graph.modules()[index].from;
    }
    path.reverse();
    Some(path)
}

/// Checks that a map of tokens joins anchors with the same tokens.
fn check_tokenizers(family: &Family, fit: &Fit) -> Result<(), FitError> {
    let stem = |path| family.graph.stem_anchor(path).unwrap_or_default();
    let is_pooled = fit.map.form == MapForm::Pooled;
    if is_pooled || family.share_tokenizer(stem(&fit.prefix), stem(&fit.target), None) {
        return Ok(());
    }
    let (from, to) = (fit.map.from.clone(), fit.map.to.clone());
    Err(FitError::TokenizersDiffer { from, to })
}

/// Runs the texts and adds up the sums of the regressions.
fn gather(
    scratch: &mut Scratch<'_>,
    data: &Dataset,
    options: &FitOptions,
    fits: &mut [Fit],
    progress: &dyn Progress,
) -> Result<(), FitError> {
    let executor = scratch.executor();
    let family = executor.family().clone();
    fits.iter().try_for_each(|fit| check_tokenizers(&family, fit))?;
    let reference = &family.manifest.reference;
    let all: Vec<ModuleId> = (0..family.graph.modules().len()).map(ModuleId).collect();
    let rows = executor.rows_at_once(&all, Shape::new(16, options.max_tokens));
    for fit in fits.iter() {
        data.require(&fit_file_name(&fit.map), least_examples(rows))?;
    }
    let batches = data.batches(&family, reference, rows, options.max_tokens)?;
    // Maps of tokens use every nth batch, so that all text lengths occur.
    let every = data.len().div_ceil(options.max_token_texts.max(1)).max(1);
    let paths = fits.iter().flat_map(|fit| [&fit.prefix, &fit.target]);
    let anchors = paths.filter_map(|path| family.graph.stem_anchor(path));
    let anchors: BTreeSet<String> = anchors.map(str::to_owned).collect();
    progress.phase("fit", batches.len() as u64);
    for (number, positions) in batches.iter().enumerate() {
        let held_out = number % HELD_OUT == HELD_OUT - 1;
        let encode = |anchor: &String| {
            Inputs::new(data.input(&family, anchor, positions, options.max_tokens)?)
        };
        let inputs = anchors.iter().map(|anchor| Ok((anchor.clone(), encode(anchor)?)));
        let inputs = inputs.collect::<Result<_, FitError>>()?;
        let mut states = States { scratch, family: &family, inputs, known: HashMap::new() };
        for fit in fits.iter_mut() {
            let is_pooled = fit.map.form == MapForm::Pooled;
            if is_pooled || number % every == 0 || held_out {
                add_batch(&family, &mut states, fit, is_pooled, usize::from(held_out))?;
            }
        }
        progress.step();
    }
    Ok(())
}

/// Adds one batch to a map's regression `part`: 0 for fitting, 1 for judging.
fn add_batch(
    family: &Family,
    states: &mut States<'_, '_>,
    fit: &mut Fit,
    is_pooled: bool,
    part: usize,
) -> Result<(), FitError> {
    let (_, network) = family
        .feature_networks()
        .nth(fit.index)
        .ok_or_else(|| FitError::Family("a map is gone".into()))?;
    let features = states.features(&fit.prefix, &fit.map.from, network)?;
    let targets = states.at(&fit.target)?;
    let mask = inputs_of(family, &states.inputs, &fit.prefix)?.mask.as_ref();
    let mask = mask.filter(|_| !is_pooled);
    let (features, inputs) = rows(&features, mask);
    let targets = if fit.map.form == MapForm::Conv { channels_last(&targets) } else { targets };
    let (targets, outputs) = rows(&targets, mask);
    let new = || [Regression::new(inputs, outputs), Regression::new(inputs, outputs)];
    fit.sums.get_or_insert_with(new)[part].add(&features, &targets);
    Ok(())
}

/// Converts `[batch, channels, height, width]` to `[batch, height · width, channels]`.
fn channels_last(map: &Tensor) -> Tensor {
    let [batch, channels, height, width] = map.shape()[..] else {
        return map.clone();
    };
    let (values, places) = (map.floats(), height * width);
    let mut turned = Vec::with_capacity(values.len());
    for image in 0..batch {
        for place in 0..places {
            let of_channel = |channel: usize| values[(image * channels + channel) * places + place];
            turned.extend((0..channels).map(of_channel));
        }
    }
    Tensor::new(vec![batch, places, channels], TensorData::F32(turned))
        .expect("as many values as before")
}

/// Returns the rows of `tensor` that are not padding, and their width.
pub(super) fn rows(tensor: &Tensor, mask: Option<&Vec<i64>>) -> (Vec<f32>, usize) {
    let width = tensor.shape().last().copied().unwrap_or(1);
    let values = tensor.floats();
    let kept = |(row, _): &(usize, &[f32])| mask.is_none_or(|mask| mask[*row] == 1);
    let rows = values.chunks(width).enumerate().filter(kept);
    (rows.flat_map(|(_, row)| row.iter().copied()).collect(), width)
}

/// Texts or images in the form that the modules of an anchor read.
pub(super) struct Inputs {
    /// Mask with 1 for a token and 0 for padding; `None` for images.
    pub(super) mask: Option<Vec<i64>>,
    pub(super) sides: SideInputs,
}

impl Inputs {
    pub(super) fn new(input: ModelInput) -> Result<Self, FitError> {
        let mask = match &input {
            ModelInput::Tokens(encoding) => Some(encoding.attention_mask.clone()),
            ModelInput::Pixels(_) => None,
        };
        Ok(Self { mask, sides: SideInputs::of_input(input)? })
    }
}

/// Activations of one batch along the requested paths, each computed once.
struct States<'a, 'e> {
    scratch: &'a mut Scratch<'e>,
    family: &'a Family,
    /// Inputs by the anchor that reads them.
    inputs: BTreeMap<String, Inputs>,
    known: HashMap<Vec<ModuleId>, Activation>,
}

/// Returns the inputs of the anchor whose stem starts `path`.
fn inputs_of<'i>(
    family: &Family,
    inputs: &'i BTreeMap<String, Inputs>,
    path: &[ModuleId],
) -> Result<&'i Inputs, FitError> {
    let anchor = family.graph.stem_anchor(path);
    anchor
        .and_then(|anchor| inputs.get(anchor))
        .ok_or_else(|| FitError::Family("a path starts with no stem".into()))
}

impl States<'_, '_> {
    /// Returns the values after `path`.
    fn at(&mut self, path: &[ModuleId]) -> Result<Tensor, FitError> {
        self.compute(path)?;
        self.known
            .get(self.last_computed(path))
            .ok_or_else(|| FitError::Family("a path computes nothing".into()))?
            .to_tensor()
            .map_err(FitError::from)
    }

    /// Returns the output of `network` for the values after `path`.
    fn features(
        &mut self,
        path: &[ModuleId],
        name: &str,
        network: &crate::module::Network,
    ) -> Result<Tensor, FitError> {
        self.compute(path)?;
        let state = self.known.get(self.last_computed(path));
        let sides = &inputs_of(self.family, &self.inputs, path)?.sides;
        Ok(self.scratch.run(name, network, state, sides)?)
    }

    /// Computes the missing activations along `path`.
    fn compute(&mut self, path: &[ModuleId]) -> Result<(), FitError> {
        let sides = &inputs_of(self.family, &self.inputs, path)?.sides;
        for end in 1..=path.len() {
            if self.known.contains_key(&path[..end]) {
                continue;
            }
            let state = self.known.get(self.last_computed(&path[..end - 1]));
            if let Some(next) = self.scratch.executor().advance(path[end - 1], state, sides)? {
                self.known.insert(path[..end].to_vec(), next);
            }
        }
        Ok(())
    }

    /// Returns the longest prefix of `path` that has values of its own; identities have none.
    fn last_computed<'p>(&self, path: &'p [ModuleId]) -> &'p [ModuleId] {
        let end = (1..=path.len()).rev().find(|end| self.known.contains_key(&path[..*end]));
        &path[..end.unwrap_or(0)]
    }
}

/// Solves a map's regression and writes its weights.
fn solve(
    writer: &mut FamilyWriter,
    data: &Dataset,
    options: &FitOptions,
    fit: &Fit,
) -> Result<FitRecord, FitError> {
    let name = fit_file_name(&fit.map);
    let empty = || FitError::Family(format!("`{name}`: no batch has a row to fit and judge on"));
    let sums = fit.sums.as_ref().filter(|sums| sums.iter().all(|part| part.rows() > 0));
    let [sums, held_out] = sums.ok_or_else(empty)?;
    let (regularization, affine, explained) = options
        .regularizations
        .iter()
        .filter_map(|ridge| sums.solve(*ridge).map(|affine| (*ridge, affine)))
        .map(|(ridge, affine)| {
            let explained = held_out.explained(&affine);
            (ridge, affine, explained)
        })
        // Activations that overflow give no weights that could be written or judged.
        .filter(|(_, affine, explained)| explained.is_finite() && affine.is_finite())
        .max_by(|a, b| a.2.total_cmp(&b.2))
        .ok_or_else(|| FitError::Singular { map: name.clone() })?;
    let content = serialize(&fit.map, &affine)?;
    let Staged { file, sha256 } = writer.stage(&name, &content)?;
    Ok(FitRecord {
        file: Some(file),
        sha256,
        samples: sums.rows() as u64,
        regularization,
        held_out_r2: (explained * 1e4).round() / 1e4,
        data: data.name(),
        date: today(SystemTime::now()),
    })
}

/// Serializes an affine map as the tensors that its form reads.
fn serialize(map: &MapSpec, affine: &Affine) -> Result<Vec<u8>, FitError> {
    let outputs = affine.bias.len();
    let bias: Vec<u8> = affine.bias.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut tensors = vec![("bias".to_owned(), Dtype::F32, vec![outputs], bias)];
    for (name, columns) in parts(map, affine, outputs) {
        let rows = affine.weight.chunks(affine.inputs);
        let values = rows.flat_map(|row| row[columns.clone()].iter().copied());
        let bytes = values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
        tensors.push((name, Dtype::F16, vec![outputs, columns.len()], bytes));
    }
    let malformed = |message: String| FitError::Family(message);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            view.map(|view| (name, view)).map_err(|e| malformed(e.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, None).map_err(|e| malformed(e.to_string()))
}

/// Returns the names of a map's weights, each with its columns in the regression.
fn parts(map: &MapSpec, affine: &Affine, width: usize) -> Vec<(String, std::ops::Range<usize>)> {
    match map.form {
        MapForm::Tokens | MapForm::Conv => {
            let width = affine.inputs / map.features.len().max(1);
            let features = map.features.iter().enumerate();
            features
                .map(|(i, f)| (format!("{}.weight", f.name()), i * width..(i + 1) * width))
                .collect()
        }
        MapForm::Mlp => vec![
            ("weight".into(), 0..affine.inputs - width),
            ("token.weight".into(), affine.inputs - width..affine.inputs),
        ],
        MapForm::Pooled => vec![("weight".into(), 0..affine.inputs)],
    }
}
