//! Estimates of the costs of modules from a few runs, so that a family can be served at once.

use super::{
    FitError, ProfileOptions, Progress,
    independence::prove_family,
    measure::{activations, inputs_of, median, monotone, timed},
};
use crate::{
    family::ModuleId,
    offer::{ModuleProfile, ProfileCache, module_digest},
    plan::Grid,
    runtime::Executor,
};

/// Longest text of the runs, in tokens.
const MAX_TOKENS: usize = 128;

/// Number of runs at each length, after one to warm up.
const NUM_RUNS: usize = 3;

/// Estimates the costs of the executor's modules that are missing in `cache`, and adds them to it
/// as estimates. Each module is run a few times at two lengths; time is taken to grow linearly with
/// length and batch. First proves for networks from outside that no row of a batch changes another.
///
/// # Errors
///
/// Fails when a module cannot be run or mixes the rows of a batch, or `progress` is stopped.
pub fn estimate_profile(
    executor: &mut Executor,
    cache: &mut ProfileCache,
    progress: &dyn Progress,
) -> Result<(), FitError> {
    let family = executor.family().clone();
    prove_family(executor.runtime(), &family, &mut cache.proven, progress)?;
    let Err(missing) = cache.profile_of(&family) else {
        return Ok(());
    };
    let options = ProfileOptions::default().within(&family.manifest);
    progress.phase("estimate", missing.len() as u64);
    for id in missing {
        progress.go_on()?;
        let Some(digest) = module_digest(&family, id) else { continue };
        if !cache.modules.contains_key(&digest) {
            let module = estimate(executor, id, &options)?;
            cache.modules.insert(digest.clone(), module);
            cache.estimated.insert(digest);
        }
        progress.step();
    }
    Ok(())
}

/// Estimates the costs of one module.
fn estimate(
    executor: &mut Executor,
    id: ModuleId,
    options: &ProfileOptions,
) -> Result<ModuleProfile, FitError> {
    let (batches, tokens) = (options.batches.clone(), options.tokens.clone());
    let bytes = activations(executor, id, options)?;
    let activation_bytes = Grid::new(batches.clone(), tokens.clone(), bytes)?;
    let short = tokens.first().copied().unwrap_or(1);
    let long = tokens.iter().copied().filter(|tokens| *tokens <= MAX_TOKENS).max().unwrap_or(short);
    let (low, high) = (time(executor, id, short)?, time(executor, id, long)?);
    let line =
        Line::through(Point { tokens: short, time: low }, Point { tokens: long, time: high });
    let knots = batches.iter().flat_map(|batch| tokens.iter().map(move |tokens| batch * tokens));
    let latencies = monotone(knots.map(|tokens| line.at(tokens)).collect(), tokens.len());
    let latency_seconds = Grid::new(batches, tokens, latencies)?;
    Ok(ModuleProfile { latency_seconds, activation_bytes })
}

/// Returns the median time of a module in seconds, for one sequence.
fn time(executor: &Executor, id: ModuleId, tokens: usize) -> Result<f64, FitError> {
    let (sides, state) = inputs_of(executor, id, tokens)?;
    let run = || timed(executor, id, state.as_ref(), &sides);
    run()?;
    let times = (0..NUM_RUNS).map(|_| run()).collect::<Result<_, _>>()?;
    Ok(median(times))
}

/// Time of a module at a length.
#[derive(Debug, Clone, Copy)]
struct Point {
    tokens: usize,
    time: f64,
}

/// Time that grows linearly with the number of tokens.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// Time without a token.
    base: f64,
    per_token: f64,
}

impl Line {
    /// Returns the line through two points, or one through zero if they are of the same length or
    /// the longer one took less time.
    fn through(short: Point, long: Point) -> Self {
        let rise = (long.time - short.time) / real(long.tokens - short.tokens).max(1.0);
        let base = short.time - rise * real(short.tokens);
        if long.tokens == short.tokens || rise <= 0.0 || base < 0.0 {
            return Self { base: 0.0, per_token: long.time / real(long.tokens).max(1.0) };
        }
        Self { base, per_token: rise }
    }

    fn at(self, tokens: usize) -> f64 {
        self.base + self.per_token * real(tokens)
    }
}

#[expect(clippy::cast_precision_loss, reason = "batches have few tokens")]
fn real(tokens: usize) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(short: (usize, f64), long: (usize, f64)) -> Line {
        let point = |tokens, time| Point { tokens, time };
        Line::through(point(short.0, short.1), point(long.0, long.1))
    }

    #[test]
    fn time_grows_linearly_from_two_lengths() {
        let line = line((8, 2.0), (128, 14.0));
        assert!((line.base - 1.2).abs() < 1e-12 && (line.at(16 * 256) - 410.8).abs() < 1e-9);
    }

    #[test]
    fn noise_never_makes_longer_inputs_cheaper() {
        for odd in [line((8, 2.0), (128, 1.0)), line((8, 1.0), (8, 1.5)), line((8, 1.0), (9, 9.0))]
        {
            assert!(odd.at(1) > 0.0 && odd.at(2_000) > odd.at(200));
        }
    }
}
