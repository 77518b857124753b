//! Measuring the costs of modules on this machine.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::{FitError, Progress, independence::prove_family, wave::wave};
use crate::{
    assembly::Family,
    family::{Manifest, ModuleId, SpaceKind},
    input::{Encoding, ModelInput, Pixels},
    offer::{ModuleProfile, ProfileCache, module_digest},
    plan::{Grid, Shape},
    runtime::{Activation, Competition, Executor, RuntimeError, SideInputs},
    tensor::{Tensor, TensorData, chain},
};

/// Settings for measuring modules.
#[derive(Debug, Clone)]
pub struct ProfileOptions {
    /// Batch sizes to measure.
    pub batches: Vec<usize>,
    /// Lengths to measure, in tokens.
    pub tokens: Vec<usize>,
    /// Minimum time for which each module is measured at each batch and length.
    pub time_per_cell: Duration,
    /// Minimum number of runs of each module at each batch and length.
    pub min_runs: usize,
    /// Most measurements of a module while others take much of the processor.
    pub attempts: usize,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self {
            batches: vec![1, 4, 16],
            tokens: vec![8, 32, 64, 128, 256],
            time_per_cell: Duration::from_millis(15),
            min_runs: 5,
            attempts: 3,
        }
    }
}

impl ProfileOptions {
    /// Returns the options without lengths that the family's inputs never have.
    pub(super) fn within(&self, manifest: &Manifest) -> Self {
        let mut options = self.clone();
        let max_tokens = if manifest.image.is_some() { 1 } else { manifest.limits.max_tokens };
        options.tokens.iter_mut().for_each(|tokens| *tokens = (*tokens).min(max_tokens));
        options.tokens.dedup();
        options
    }
}

/// Measures the modules of the executor's family that are missing in `cache`, and adds them to it.
/// First proves for networks from outside that no row of a batch changes another.
///
/// Modules that follow one another in plans are run round robin. A module then finds the
/// processor's caches as in a path, not filled with its own weights. A batch too large for the
/// memory limit is measured in the chunks that it would run in. `save` is called after every group
/// of modules, so that an interrupted run can resume.
///
/// # Errors
///
/// Fails when a module cannot be run or mixes the rows of a batch, saving fails, or `progress` is
/// stopped.
pub fn measure_profile(
    executor: &mut Executor,
    options: &ProfileOptions,
    cache: &mut ProfileCache,
    progress: &dyn Progress,
    save: &mut dyn FnMut(&ProfileCache) -> Result<(), FitError>,
) -> Result<(), FitError> {
    let family = executor.family().clone();
    if prove_family(executor.runtime(), &family, &mut cache.proven, progress)? {
        save(cache)?;
    }
    let Err(missing) = cache.profile_of(&family) else {
        return Ok(());
    };
    let groups = groups(executor, &missing);
    let options = &options.within(&family.manifest);
    let cells = options.batches.len() * options.tokens.len();
    progress.phase("profile", (groups.len() * cells) as u64);
    for group in groups.values() {
        let mut activation_bytes = Vec::new();
        for id in group {
            progress.go_on()?;
            let bytes = activations(executor, *id, options)?;
            let grid = Grid::new(options.batches.clone(), options.tokens.clone(), bytes)?;
            executor.learn_activations(*id, grid.clone());
            activation_bytes.push(grid);
        }
        let Latencies { latencies, others } = measure_group(executor, group, options, progress)?;
        for ((id, latencies), activation_bytes) in group.iter().zip(latencies).zip(activation_bytes)
        {
            let Some(digest) = module_digest(&family, *id) else {
                continue;
            };
            let (batches, tokens) = (options.batches.clone(), options.tokens.clone());
            let latencies = monotone(latencies, tokens.len());
            let latency_seconds = Grid::new(batches, tokens, latencies)?;
            match others > Competition::MOST {
                true => cache.estimated.insert(digest.clone()),
                false => cache.estimated.remove(&digest),
            };
            cache.modules.insert(digest, ModuleProfile { latency_seconds, activation_bytes });
        }
        save(cache)?;
    }
    Ok(())
}

/// Latencies of a group of modules.
struct Latencies {
    /// Median times in seconds, by module and cell.
    latencies: Vec<Vec<f64>>,
    /// Fraction of the processor that others took meanwhile.
    others: f64,
}

/// Measures the modules of `group` at all batches and lengths. Repeats it while others take much of
/// the processor, and keeps the measurement beside which they took least.
fn measure_group(
    executor: &mut Executor,
    group: &[ModuleId],
    options: &ProfileOptions,
    progress: &dyn Progress,
) -> Result<Latencies, FitError> {
    let mut best: Option<Latencies> = None;
    for attempt in 1..=options.attempts.max(1) {
        let competition = Competition::begin();
        let mut latencies: Vec<Vec<f64>> = vec![Vec::new(); group.len()];
        for &batch in &options.batches {
            for &tokens in &options.tokens {
                let shape = Shape::new(batch, tokens);
                let medians = measure_cell(executor, group, shape, options, progress)?;
                for (all, median) in latencies.iter_mut().zip(medians) {
                    all.push(median);
                }
                if attempt == 1 {
                    progress.step();
                }
            }
        }
        let others = competition.share();
        if best.as_ref().is_none_or(|best| others < best.others) {
            best = Some(Latencies { latencies, others });
        }
        if others <= Competition::MOST {
            break;
        }
        let next = match attempt < options.attempts {
            true => "measuring again",
            false => "these costs count as estimates; `tessera profile` measures them again",
        };
        progress.note(&format!("others took {:.0} % of the processor; {next}", 100.0 * others));
    }
    best.ok_or(FitError::Stopped)
}

/// Groups modules by the anchor whose hidden states they read or make, and by int8 or not.
fn groups(executor: &Executor, modules: &[ModuleId]) -> BTreeMap<String, Vec<ModuleId>> {
    let graph = &executor.family().graph;
    let mut groups: BTreeMap<String, Vec<ModuleId>> = BTreeMap::new();
    for id in modules {
        let module = graph.module(*id);
        let from = graph.spaces()[module.from.0].kind;
        let to = graph.spaces()[module.to.0].kind;
        let anchor = match (from, to) {
            (SpaceKind::Hidden { anchor, .. }, _) | (_, SpaceKind::Hidden { anchor, .. }) => {
                &graph.anchors()[anchor]
            }
            _ => "",
        };
        groups.entry(format!("{anchor} {}", module.is_int8())).or_default().push(*id);
    }
    groups
}

/// Returns the median time of each module of `group` at one batch and length, in seconds.
fn measure_cell(
    executor: &mut Executor,
    group: &[ModuleId],
    shape: Shape,
    options: &ProfileOptions,
    progress: &dyn Progress,
) -> Result<Vec<f64>, FitError> {
    let rows = executor.rows_at_once(group, shape);
    let sides =
        SideInputs::of_input(full_input(executor.family(), Shape::new(rows, shape.tokens)))?;
    let shapes: Vec<Option<StateShape>> =
        group.iter().map(|id| state_shape(executor, *id, Shape::new(rows, shape.tokens))).collect();
    let mut states = HashMap::new();
    for shape in shapes.iter().flatten() {
        if !states.contains_key(shape) {
            states.insert(shape.clone(), state(shape.clone())?);
        }
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); group.len()];
    let start = Instant::now();
    let long_enough = options.time_per_cell * u32::try_from(group.len()).unwrap_or(u32::MAX);
    let mut round = 0;
    while round <= options.min_runs || start.elapsed() < long_enough {
        for (index, id) in group.iter().enumerate() {
            let state = shapes[index].as_ref().and_then(|shape| states.get(shape));
            progress.go_on()?;
            // The module may have been unloaded for others of the group.
            executor.load(&[*id])?;
            let time = timed(executor, *id, state, &sides)?;
            if round > 0 {
                times[index].push(time);
            }
        }
        round += 1;
    }
    let num_chunks = fraction(shape.batch, rows);
    Ok(times.into_iter().map(|times| median(times) * num_chunks).collect())
}

/// Returns the time in seconds of one run of module `id`.
pub(super) fn timed(
    executor: &Executor,
    id: ModuleId,
    state: Option<&Activation>,
    sides: &SideInputs,
) -> Result<f64, FitError> {
    let start = Instant::now();
    drop(executor.advance(id, state, sides)?);
    Ok(start.elapsed().as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "batches are small")]
fn fraction(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// Shape of hidden states.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct StateShape {
    extents: Vec<usize>,
    /// Batch and rows, if rows have sizes.
    sized: Option<[usize; 2]>,
}

/// Returns the shape of the hidden states that module `id` reads, or `None` if it reads none.
fn state_shape(
    executor: &Executor,
    id: ModuleId,
    Shape { batch, tokens }: Shape,
) -> Option<StateShape> {
    let graph = &executor.family().graph;
    let space = &graph.spaces()[graph.module(id).from.0];
    let SpaceKind::Hidden { passed, .. } = space.kind else { return None };
    let rows = passed.rows(tokens);
    let extents = space.shape().into_iter().map(|extent| extent.unwrap_or(rows));
    let extents = [batch].into_iter().chain(extents).collect();
    let sized = passed.is_merging().then_some([batch, rows]);
    Some(StateShape { extents, sized })
}

/// Creates hidden states with values of the size that a layer norm gives.
fn state(StateShape { extents, sized }: StateShape) -> Result<Activation, FitError> {
    let values = (0..extents.iter().product()).map(wave).collect();
    let tensor = Tensor::new(extents, TensorData::F32(values));
    let state = Activation::of_tensor(tensor.map_err(|e| FitError::Family(e.to_string()))?)?;
    Ok(match sized {
        Some(shape) => state.with_sizes(shape)?,
        None => state,
    })
}

/// Returns the inputs of module `id` for one sequence: the request's, and the hidden states if it
/// reads any.
pub(super) fn inputs_of(
    executor: &Executor,
    id: ModuleId,
    tokens: usize,
) -> Result<(SideInputs, Option<Activation>), FitError> {
    let shape = Shape::new(1, tokens);
    let sides = SideInputs::of_input(full_input(executor.family(), shape))?;
    let state = state_shape(executor, id, shape).map(state).transpose()?;
    Ok((sides, state))
}

/// Returns token ids without padding, or images of noise.
pub(super) fn full_input(family: &Family, Shape { batch, tokens }: Shape) -> ModelInput {
    if let Some(image) = &family.manifest.image {
        let shape = [image.channels, image.height, image.width];
        let values = (0..batch * shape.iter().product::<usize>()).map(wave).collect();
        return ModelInput::Pixels(Pixels { shape, values });
    }
    let anchors = family.graph.anchors().iter().map(|anchor| family.vocabulary_size(anchor));
    let words = anchors.min().unwrap_or(1).max(1);
    let ids = (0..batch * tokens).map(|index| ((1_000 + index * 37) % words) as i64).collect();
    let attention_mask = vec![1; batch * tokens];
    ModelInput::Tokens(Encoding { batch, tokens, input_ids: ids, attention_mask })
}

/// Returns the size of module `id`'s activations at each batch and length, in bytes. It is the size
/// that ONNX Runtime's profiler reports for one sequence, times the batch.
pub(super) fn activations(
    executor: &mut Executor,
    id: ModuleId,
    options: &ProfileOptions,
) -> Result<Vec<f64>, FitError> {
    let mut per_sequence = Vec::new();
    for &tokens in &options.tokens {
        per_sequence.push(inputs_of(executor, id, tokens)?);
    }
    let bytes = match executor.measure_activations(id, &per_sequence) {
        Err(error @ RuntimeError::Scratch { .. }) => {
            let error = chain(&error);
            tracing::warn!(error, "activations are estimated, since they cannot be measured");
            options.tokens.iter().map(|tokens| estimated_activations(executor, *tokens)).collect()
        }
        measured => measured?,
    };
    let by_batch = options.batches.iter().flat_map(|batch| {
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        let batch = *batch as f64;
        bytes.iter().map(move |bytes| batch * bytes)
    });
    Ok(by_batch.collect())
}

/// Returns a cautious estimate of any module's activations for one sequence, in bytes. It is a
/// multiple of the family's widest activations.
fn estimated_activations(executor: &Executor, tokens: usize) -> f64 {
    const TIMES: usize = 16;
    let spaces = executor.family().graph.spaces().iter();
    let elements = spaces.map(|space| {
        space.shape().into_iter().map(|extent| extent.unwrap_or(tokens)).product::<usize>()
    });
    let bytes = TIMES * size_of::<f32>() * elements.max().unwrap_or(1);
    #[expect(clippy::cast_precision_loss, reason = "activations are far below 2^53 bytes")]
    let bytes = bytes as f64;
    bytes
}

/// Lowers each latency to at most that of a longer sequence or a larger batch. Only noise makes it
/// higher, and noise adds time, so the lower value is the better one.
pub(super) fn monotone(mut values: Vec<f64>, columns: usize) -> Vec<f64> {
    for index in (0..values.len()).rev() {
        if index % columns + 1 < columns {
            values[index] = values[index].min(values[index + 1]);
        }
        if index + columns < values.len() {
            values[index] = values[index].min(values[index + columns]);
        }
    }
    values
}

/// Returns the median of `times`.
pub(super) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_never_makes_more_work_cheaper() {
        assert_eq!(monotone(vec![1.0, 0.5, 3.0, 0.2, 2.0, 2.5], 3), [0.2, 0.5, 2.5, 0.2, 2.0, 2.5]);
    }

    #[test]
    fn the_median_ignores_an_outlier() {
        assert!((median(vec![2.0, 900.0, 1.0]) - 2.0).abs() < f64::EPSILON);
    }
}
