//! Measuring modules a little at a time, while nothing else runs.
//!
//! A family may be served with costs from another machine. What takes so little time that nobody
//! notices is measured here; what takes longer is scaled by what was found of the same module.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    FitError,
    measure::{inputs_of, median, monotone, timed},
};
use crate::{assembly::Family, family::ModuleId, offer::Profile, plan::Grid, runtime::Executor};

/// Longest expected run that is measured. A request that arrives meanwhile waits for it.
const LONGEST: Duration = Duration::from_millis(1);

/// Longest time for the runs of one turn, and their least number in all.
const TURN: Duration = Duration::from_millis(1);
const MIN_RUNS: usize = 5;

/// Largest number of turns for one module at one length; a machine with other work may never be
/// quiet.
const MAX_TURNS: usize = 20;

/// Measurements of modules, of which each turn makes a few.
#[derive(Debug)]
pub struct IdleMeasuring {
    family: Arc<Family>,
    profile: Profile,
    modules: Vec<ModuleId>,
    left: VecDeque<Cell>,
    /// Measured times in seconds, by module and length, for a batch of one.
    found: BTreeMap<ModuleId, BTreeMap<usize, f64>>,
}

/// Module at one length, and what its runs took so far.
#[derive(Debug)]
struct Cell {
    module: ModuleId,
    tokens: usize,
    num_turns: usize,
    times: Vec<f64>,
}

impl IdleMeasuring {
    /// Creates the measurements of those of `modules` that `profile` expects to be short.
    pub fn new(family: Arc<Family>, profile: Profile, modules: Vec<ModuleId>) -> Self {
        let (left, found) = (VecDeque::new(), BTreeMap::new());
        let mut measuring = Self { family, profile, modules, left, found };
        measuring.begin_again();
        measuring
    }

    /// Forgets what was measured.
    pub fn begin_again(&mut self) {
        self.found.clear();
        self.left.clear();
        for module in &self.modules {
            let Some(known) = self.profile.module(*module) else { continue };
            let latency = &known.latency_seconds;
            let is_short = |tokens: &&usize| latency.at(1, **tokens) <= LONGEST.as_secs_f64();
            let cell = |tokens: &usize| {
                let (module, tokens, times) = (*module, *tokens, Vec::new());
                Cell { module, tokens, num_turns: 0, times }
            };
            self.left.extend(latency.tokens().iter().filter(is_short).map(cell));
        }
    }

    /// Returns whether everything is measured.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Runs one module a few times, for about two milliseconds. A run counts if `is_quiet` returns
    /// true after it. A module for which there is no room in memory is left out.
    ///
    /// # Errors
    ///
    /// Fails when a module cannot be loaded or run.
    pub fn turn(
        &mut self,
        executor: &Executor,
        is_quiet: &dyn Fn() -> bool,
    ) -> Result<(), FitError> {
        let Some(mut cell) = self.left.pop_front() else { return Ok(()) };
        if !executor.load_ahead(cell.module)? {
            return Ok(());
        }
        cell.run(executor, is_quiet)?;
        if cell.times.len() >= MIN_RUNS {
            let lengths = self.found.entry(cell.module).or_default();
            lengths.insert(cell.tokens, median(cell.times));
        } else if cell.num_turns < MAX_TURNS {
            self.left.push_front(cell);
        }
        Ok(())
    }

    /// Returns the family's costs with what was measured.
    ///
    /// # Errors
    ///
    /// Fails when a scaled cost is out of range.
    pub fn profile(&self) -> Result<Profile, FitError> {
        let mut profile = self.profile.clone();
        for (id, found) in &self.found {
            if let Some(latency) = profile.latency_mut(*id) {
                *latency = with_found(latency, found)?;
            }
        }
        Ok(profile)
    }

    /// Returns the modules of which something was measured.
    pub fn measured(&self) -> impl Iterator<Item = ModuleId> {
        self.found.keys().copied()
    }

    /// Returns the family.
    pub fn family(&self) -> &Arc<Family> {
        &self.family
    }
}

impl Cell {
    /// Runs the module once to warm up, and then until the turn is over.
    fn run(&mut self, executor: &Executor, is_quiet: &dyn Fn() -> bool) -> Result<(), FitError> {
        let (sides, state) = inputs_of(executor, self.module, self.tokens)?;
        let run = || timed(executor, self.module, state.as_ref(), &sides);
        self.num_turns += 1;
        run()?;
        let turn = Instant::now();
        while is_quiet() && self.times.len() < MIN_RUNS && turn.elapsed() < TURN {
            let time = run()?;
            if is_quiet() {
                self.times.push(time);
            }
        }
        Ok(())
    }
}

/// Returns `known` with the times `found` of a batch of one, by length. What was not measured
/// changes in the same ratio as the longest that was.
fn with_found(known: &Grid, found: &BTreeMap<usize, f64>) -> Result<Grid, FitError> {
    let ratio = found.iter().next_back().map_or(1.0, |(tokens, time)| {
        let before = known.at(1, *tokens);
        if before > 0.0 { time / before } else { 1.0 }
    });
    let knots =
        known.batches().iter().flat_map(|batch| known.tokens().iter().map(move |t| (*batch, *t)));
    let values =
        knots.zip(known.values()).map(|((batch, tokens), value)| match found.get(&tokens) {
            Some(time) if batch == 1 => *time,
            _ => value * ratio,
        });
    let values = monotone(values.collect(), known.tokens().len());
    Ok(Grid::new(known.batches().to_vec(), known.tokens().to_vec(), values)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_measured_follows_the_longest_that_is() {
        let values = vec![1.0, 2.0, 4.0, 4.0, 8.0, 16.0];
        let known = Grid::new(vec![1, 4], vec![8, 16, 32], values).expect("a grid");
        let found = [(8, 1.5), (16, 4.0)].into();
        let grid = with_found(&known, &found).expect("a grid");
        assert_eq!(grid.values(), [1.5, 4.0, 8.0, 8.0, 16.0, 32.0]);
        assert_eq!(with_found(&known, &BTreeMap::new()).expect("a grid").values(), known.values());
    }
}
