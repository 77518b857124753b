//! Fitting experts: the grouping of hidden units and the routers that choose groups for a token.

mod clusters;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use safetensors::{Dtype, tensor::TensorView};

use super::{
    FitError, Progress,
    data::dataset::Dataset,
    maps::{HELD_OUT, Inputs, least_examples, own_path, rows},
    ridge::{Affine, Regression},
};
use crate::{
    arch::{SplitPart, split_file_name},
    assembly::Family,
    family::{ExpertsSpec, ModuleId, RouterForm, SpaceId},
    plan::Shape,
    pool::{FamilyWriter, SplitRecord, Staged, today},
    runtime::{Executor, Runtime, Scratch, SideInputs},
};
use clusters::{Rows, balanced_groups, max_rounds, random_groups};

/// Settings for fitting experts.
#[derive(Debug, Clone)]
pub struct ExpertOptions {
    /// Method of grouping hidden units.
    pub grouping: Grouping,
    /// Seed of the random choices.
    pub seed: u64,
    /// Whether a token gets the mean output of the experts that it does not use. Otherwise it gets
    /// nothing from them.
    pub compensate: bool,
    /// Candidate ridges for learned routers.
    pub regularizations: Vec<f64>,
    /// Number of tokens after which texts are cut.
    pub max_tokens: usize,
    /// Maximum number of texts or images.
    pub max_texts: usize,
    /// Whether experts that are already fitted are fitted again.
    pub refit: bool,
}

/// Method of grouping hidden units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Groups of units whose rows of the first matrix point in similar directions. The method is
    /// balanced k-means (EMoE, section 3).
    Clusters,
    /// Random groups, for comparison.
    Random,
}

impl Default for ExpertOptions {
    fn default() -> Self {
        Self {
            grouping: Grouping::Clusters,
            seed: 0,
            compensate: false,
            regularizations: vec![1e-4, 1e-3, 1e-2, 1e-1],
            max_tokens: 128,
            max_texts: 600,
            refit: false,
        }
    }
}

/// Experts of one block while they are being fitted.
struct Block<'f> {
    part: &'f SplitPart,
    spec: &'f ExpertsSpec,
    groups: Vec<Vec<usize>>,
    /// Mean of each group's rows, not scaled to unit length, `[experts, width]`.
    means: Vec<f32>,
    /// Second matrix, `[width, units]`.
    values: Vec<f32>,
    /// Sum of each hidden unit over all tokens.
    sums: Vec<f64>,
    num_tokens: usize,
    /// Regressions from tokens to each group's sum of positive units: one for fitting, one held
    /// out.
    mass: [Regression; 2],
}

/// Fits the experts in the family's manifest whose file is missing or broken.
///
/// Commits all assignments and routers together. Returns the number of anchors that were split.
///
/// Weights are not copied: an expert is a list of hidden units. The groups depend on the first
/// matrix alone. Texts or images give the sums of groups that a learned router predicts, and the
/// mean outputs of groups.
///
/// # Errors
///
/// Fails when the family cannot be loaded or run, or a file cannot be written.
pub fn fit_experts(
    runtime: &Runtime,
    writer: &mut FamilyWriter,
    data: &Dataset,
    options: &ExpertOptions,
    progress: &dyn Progress,
) -> Result<usize, FitError> {
    let before = writer.whole_records();
    let mut records = before.clone();
    if options.refit {
        records.experts.clear();
    }
    let family = Arc::new(Family::load_with(writer.folder(), records.clone())?);
    let is_due = |spec: &ExpertsSpec| !records.experts.contains_key(&split_file_name(spec));
    let due: Vec<usize> = family
        .manifest
        .experts
        .iter()
        .enumerate()
        .filter(|(entry, spec)| {
            is_due(spec) && family.split_parts().iter().any(|p| p.entry == *entry)
        })
        .map(|(entry, _)| entry)
        .collect();
    let executor = Executor::new(runtime.clone(), family.clone());
    let mut scratch = Scratch::new(&executor);
    for entry in &due {
        let spec = &family.manifest.experts[*entry];
        let parts = family.split_parts().iter().filter(|part| part.entry == *entry);
        let mut blocks = Vec::new();
        let parts: Vec<&SplitPart> = parts.collect();
        let way = Way::new(scratch.executor(), data, options, &parts)?;
        progress.phase(&format!("split {}", spec.anchor), parts.len() as u64 * max_rounds());
        for part in parts {
            blocks.push(group(&mut scratch, part, spec, options, progress)?);
        }
        way.gather(&mut scratch, data, &mut blocks, progress)?;
        let (name, record) = write(writer, data, options, &blocks)?;
        progress.note(&format!(
            "{name}: {} blocks, held-out R² {:.3}",
            blocks.len(),
            record.held_out_r2
        ));
        records.experts.insert(name, record);
    }
    if !due.is_empty() {
        // Experts of missing anchors keep their fits.
        for (name, record) in before.experts {
            records.experts.entry(name).or_insert(record);
        }
        records.note_texts(&data.name(), data.digests());
        writer.commit(records)?;
    }
    Ok(due.len())
}

/// Splits the hidden units of one block into experts.
fn group<'f>(
    scratch: &mut Scratch<'_>,
    part: &'f SplitPart,
    spec: &'f ExpertsSpec,
    options: &ExpertOptions,
    progress: &dyn Progress,
) -> Result<Block<'f>, FitError> {
    let sides = SideInputs::default();
    let mut read = |name: &str, network| {
        let tensor = scratch.run(&format!("{}.{name}", part.space), network, None, &sides)?;
        Ok::<_, FitError>(tensor.floats().to_vec())
    };
    let keys = read("keys", &part.keys)?;
    let values = read("values", &part.values)?;
    let (width, num_experts) = (part.width, spec.num_experts);
    let keys = Rows { values: &keys, width };
    let groups = match options.grouping {
        Grouping::Random => random_groups(keys.count(), num_experts, options.seed),
        Grouping::Clusters => {
            let unit = unit_rows(keys);
            let unit = Rows { values: &unit, width };
            balanced_groups(unit, num_experts, options.seed, &|| progress.step())
        }
    };
    let new = || Regression::new(width, num_experts);
    Ok(Block {
        part,
        spec,
        means: keys.means(&groups),
        groups,
        values,
        sums: vec![0.0; keys.count()],
        num_tokens: 0,
        mass: [new(), new()],
    })
}

/// Scales rows to unit length.
fn unit_rows(rows: Rows<'_>) -> Vec<f32> {
    let scale = |row: &[f32]| {
        let length =
            row.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter().map(|value| value / length).collect::<Vec<_>>()
    };
    rows.values.chunks(rows.width).flat_map(scale).collect()
}

/// Way of the data through an anchor whose blocks are split.
struct Way {
    anchor: String,
    path: Vec<ModuleId>,
    /// Positions of the blocks by their space.
    spaces: BTreeMap<SpaceId, usize>,
    max_tokens: usize,
    batches: Vec<Vec<usize>>,
}

impl Way {
    /// Plans the way of `data` to `parts`.
    ///
    /// # Errors
    ///
    /// Fails when there are too few texts or images to fit and judge a router.
    fn new(
        executor: &Executor,
        data: &Dataset,
        options: &ExpertOptions,
        parts: &[&SplitPart],
    ) -> Result<Self, FitError> {
        let family = executor.family();
        let space = |(index, part): (usize, &&SplitPart)| {
            Some((family.graph.space_named(&part.space)?, index))
        };
        let spaces: BTreeMap<SpaceId, usize> = parts.iter().enumerate().filter_map(space).collect();
        let paths = spaces.keys().filter_map(|space| own_path(&family.graph, *space));
        let path = paths.max_by_key(Vec::len);
        let path =
            path.ok_or_else(|| FitError::Family("an anchor has no block to split".into()))?;
        let anchor = family.graph.stem_anchor(&path).unwrap_or_default().to_owned();
        let max_tokens = options.max_tokens;
        let rows = executor.rows_at_once(&path, Shape::new(16, max_tokens));
        data.require(&format!("fitting the experts of `{anchor}`"), least_examples(rows))?;
        let mut batches = data.batches(family, &anchor, rows, max_tokens)?;
        // Every nth batch is used, so that all text lengths occur; enough that one is held out.
        let every = data.len().div_ceil(options.max_texts.max(1));
        let every = every.min(batches.len() / HELD_OUT).max(1);
        let mut number = 0_usize..;
        batches.retain(|_| number.next().is_some_and(|number| number.is_multiple_of(every)));
        Ok(Self { anchor, path, spaces, max_tokens, batches })
    }

    /// Runs the data and adds up the sums for routers and mean outputs.
    fn gather(
        &self,
        scratch: &mut Scratch<'_>,
        data: &Dataset,
        blocks: &mut [Block<'_>],
        progress: &dyn Progress,
    ) -> Result<(), FitError> {
        let family = scratch.executor().family().clone();
        progress.phase("fit routers", self.batches.len() as u64);
        for (number, positions) in self.batches.iter().enumerate() {
            let held_out = number % HELD_OUT == HELD_OUT - 1;
            let inputs =
                Inputs::new(data.input(&family, &self.anchor, positions, self.max_tokens)?)?;
            let mut pass = Pass { scratch: &mut *scratch, inputs: &inputs, held_out };
            pass.run(&self.path, &self.spaces, blocks)?;
            progress.step();
        }
        Ok(())
    }
}

/// Run of one batch through an anchor.
struct Pass<'p, 'e> {
    scratch: &'p mut Scratch<'e>,
    inputs: &'p Inputs,
    held_out: bool,
}

impl Pass<'_, '_> {
    fn run(
        &mut self,
        path: &[ModuleId],
        spaces: &BTreeMap<SpaceId, usize>,
        blocks: &mut [Block<'_>],
    ) -> Result<(), FitError> {
        let executor = self.scratch.executor();
        let family = executor.family().clone();
        let mut state = None;
        for id in path {
            state = executor.advance(*id, state.as_ref(), &self.inputs.sides)?.or(state);
            let Some(index) = spaces.get(&family.graph.module(*id).to) else { continue };
            let block = &mut blocks[*index];
            let name = format!("{}.units", block.part.space);
            let sides = &self.inputs.sides;
            let seen = self.scratch.run(&name, &block.part.units, state.as_ref(), sides)?;
            let (seen, width) = rows(&seen, self.inputs.mask.as_ref());
            block.add(&seen, width, self.held_out);
        }
        Ok(())
    }
}

impl Block<'_> {
    /// Adds rows that hold a token followed by its hidden units.
    fn add(&mut self, seen: &[f32], width: usize, held_out: bool) {
        let (mut tokens, mut mass) = (Vec::new(), Vec::new());
        for row in seen.chunks_exact(width) {
            let (token, units) = row.split_at(self.part.width);
            tokens.extend_from_slice(token);
            let positive =
                |group: &Vec<usize>| group.iter().map(|u| units[*u].max(0.0)).sum::<f32>();
            mass.extend(self.groups.iter().map(positive));
            self.sums.iter_mut().zip(units).for_each(|(sum, unit)| *sum += f64::from(*unit));
            self.num_tokens += 1;
        }
        self.mass[usize::from(held_out)].add(&tokens, &mass);
    }

    /// Returns the router and the fraction of variance that it explains. A learned router is the
    /// best fit to the groups' sums. Otherwise the router holds the means of the groups' rows.
    fn router(&self, options: &ExpertOptions) -> Result<(Affine, f64), FitError> {
        if self.spec.router != RouterForm::Learned {
            let (weight, inputs) = (self.means.clone(), self.part.width);
            return Ok((Affine { weight, bias: Vec::new(), inputs }, 0.0));
        }
        let [sums, held_out] = &self.mass;
        let solved = options.regularizations.iter().filter_map(|ridge| sums.solve(*ridge));
        let judged = solved.map(|affine| (held_out.explained(&affine), affine));
        // Activations that overflow give no weights that could be written or judged.
        let judged = judged.filter(|(found, affine)| found.is_finite() && affine.is_finite());
        let best = judged.max_by(|a, b| a.0.total_cmp(&b.0));
        let (explained, affine) =
            best.ok_or_else(|| FitError::Singular { map: split_file_name(self.spec) })?;
        Ok((affine, explained))
    }

    /// Returns the mean output of each expert, `[experts, width]`.
    #[expect(clippy::cast_possible_truncation, reason = "weights are kept in f32")]
    #[expect(clippy::cast_precision_loss, reason = "tokens are few")]
    fn mean_outputs(&self) -> Vec<f32> {
        let num_units = self.sums.len();
        let mean = |unit: &usize| self.sums[*unit] / self.num_tokens.max(1) as f64;
        let output = |group: &Vec<usize>, row: &[f32]| {
            group.iter().map(|unit| mean(unit) * f64::from(row[*unit])).sum::<f64>() as f32
        };
        let rows = || self.values.chunks_exact(num_units);
        self.groups.iter().flat_map(|group| rows().map(move |row| output(group, row))).collect()
    }
}

/// Writes the file of one manifest entry and returns its name and record.
fn write(
    writer: &mut FamilyWriter,
    data: &Dataset,
    options: &ExpertOptions,
    blocks: &[Block<'_>],
) -> Result<(String, SplitRecord), FitError> {
    let Some(first) = blocks.first() else {
        return Err(FitError::Family("an anchor has no block to split".into()));
    };
    let name = split_file_name(first.spec);
    let has_all = |block: &Block<'_>| block.mass.iter().all(|sums| sums.rows() > 0);
    if !blocks.iter().all(has_all) {
        return Err(FitError::Family(format!("`{name}`: no batch has a row to fit and judge on")));
    }
    let mut file = TensorFile::default();
    let mut explained = 0.0;
    for block in blocks {
        explained += file.add(block, options)?;
    }
    let content = file.serialize()?;
    let Staged { file, sha256 } = writer.stage(&name, &content)?;
    #[expect(clippy::cast_precision_loss, reason = "blocks are few")]
    let explained = explained / blocks.len() as f64;
    let record = SplitRecord {
        file: Some(file),
        sha256,
        samples: first.mass[0].rows() as u64,
        held_out_r2: (explained * 1e4).round() / 1e4,
        data: data.name(),
        date: today(SystemTime::now()),
    };
    Ok((name, record))
}

/// Tensors of a file that is to be written.
#[derive(Default)]
struct TensorFile(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl TensorFile {
    /// Adds the tensors of a block; returns the fraction of variance that its router explains.
    fn add(&mut self, block: &Block<'_>, options: &ExpertOptions) -> Result<f64, FitError> {
        let (router, explained) = block.router(options)?;
        let (width, count) = (block.part.width, block.groups.len());
        let units = block.groups.iter().flatten();
        let units = units.flat_map(|unit| i32::try_from(*unit).unwrap_or(-1).to_le_bytes());
        let size = block.groups.first().map_or(0, Vec::len);
        let name = |part: &str| format!("block.{}.{part}", block.part.block);
        self.0.push((name("units"), Dtype::I32, vec![count, size], units.collect()));
        self.floats(name("gate.weight"), vec![count, width], &router.weight);
        if !router.bias.is_empty() {
            self.floats(name("gate.bias"), vec![count], &router.bias);
        }
        if options.compensate {
            self.floats(name("dropped"), vec![count, width], &block.mean_outputs());
        }
        Ok(explained)
    }

    fn floats(&mut self, name: String, shape: Vec<usize>, values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.push((name, Dtype::F32, shape, bytes));
    }

    fn serialize(&self) -> Result<Vec<u8>, FitError> {
        let malformed = |error: safetensors::SafeTensorError| FitError::Family(error.to_string());
        let views = self.0.iter().map(|(name, dtype, shape, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name, view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
        safetensors::serialize(views, None).map_err(malformed)
    }
}
