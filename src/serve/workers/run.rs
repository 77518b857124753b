//! Runs of a plan on an input that may be larger than the largest batch, and the experts that its
//! tokens took.

use std::{ops::Range, time::Duration};

use super::outputs::{Outputs, Places, concatenate};
use crate::{
    assembly::Family,
    family::ModuleId,
    input::ModelInput,
    plan::{Plan, Shape},
    runtime::{Executor, ModuleObserver, Routing, RuntimeError, SideInputs},
    serve::{observe::Observer, request::RoutedModule},
};

/// A plan and its input.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) plan: &'a Plan,
    pub(super) input: ModelInput,
    /// Largest number of sequences that run at the same time.
    pub(super) max_batch: usize,
}

/// Results of a plan.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) outputs: Outputs,
    /// Places of the sequences that are tokens; `None` for images.
    pub(super) places: Option<Places>,
    /// Experts that the tokens took, by module.
    pub(super) routed: RoutedBatch,
    /// Time that each module took, summed over all chunks.
    pub(super) times: Vec<(ModuleId, Duration)>,
}

/// Runs a plan of the family `name` in chunks that fit into memory.
pub(super) fn run_chunks(
    executor: &Executor,
    name: &str,
    work: Work<'_>,
    observer: &dyn Observer,
) -> Result<Ran, RuntimeError> {
    let family = executor.family().clone();
    let routed = RoutedBatch::default();
    let times = Vec::new();
    let mut heard = Recorder { name, family: &family, observer, routed, times, num_ran: 0 };
    let places = Places::of(&work.input);
    let Work { plan, input, max_batch } = work;
    let (batch, tokens) = (input.batch(), input.tokens());
    let most = executor.rows_at_once(&plan.path, Shape::new(batch.min(max_batch), tokens));
    let run = |rows: Range<usize>| {
        let num_ran = heard.num_ran;
        // Texts are cut to the longest of the chunk.
        let sides = SideInputs::of_input(input.rows(rows));
        let outputs = sides.and_then(|sides| executor.run(plan, &sides, &mut heard));
        outputs.map_err(|error| Failed { error, has_begun: heard.num_ran > num_ran })
    };
    let outputs = in_chunks(batch, most, run)?;
    let Recorder { routed, times, .. } = heard;
    Ok(Ran { outputs: concatenate(outputs), places, routed, times })
}

/// Chunk that failed.
#[derive(Debug)]
struct Failed {
    error: RuntimeError,
    /// Whether a module of the chunk has run.
    has_begun: bool,
}

/// Runs `num_rows` rows by `run`, in chunks of at most `most`. A chunk that does not fit into
/// memory is halved, unless a module of it has run.
fn in_chunks(
    num_rows: usize,
    mut most: usize,
    mut run: impl FnMut(Range<usize>) -> Result<Outputs, Failed>,
) -> Result<Vec<Outputs>, RuntimeError> {
    let (mut outputs, mut start) = (Vec::new(), 0);
    while start < num_rows {
        let rows = start..num_rows.min(start + most);
        match run(rows.clone()) {
            Ok(found) => {
                outputs.push(found);
                start = rows.end;
            }
            Err(Failed { error: RuntimeError::MemoryLimit { .. }, has_begun: false })
                if rows.len() > 1 =>
            {
                most = rows.len() / 2;
            }
            Err(Failed { error, .. }) => return Err(error),
        }
    }
    Ok(outputs)
}

/// Observer that collects a plan's times and routings, and passes them on under the modules' names.
struct Recorder<'a> {
    name: &'a str,
    family: &'a Family,
    observer: &'a dyn Observer,
    routed: RoutedBatch,
    times: Vec<(ModuleId, Duration)>,
    num_ran: usize,
}

impl ModuleObserver for Recorder<'_> {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        self.num_ran += 1;
        match self.times.iter_mut().find(|(known, _)| *known == module) {
            Some((_, sum)) => *sum += time,
            None => self.times.push((module, time)),
        }
        let module = &self.family.graph.module(module).name;
        tracing::debug!(module, seconds = time.as_secs_f64(), "ran");
        self.observer.module_ran(self.name, module, time);
    }

    fn routed(&mut self, module: ModuleId, routing: &Routing) {
        let module = &self.family.graph.module(module).name;
        self.observer.tokens_routed(self.name, module, routing);
        self.routed.add(module, routing);
    }
}

/// Experts that each sequence of a batch took, by module.
#[derive(Debug, Default)]
pub(super) struct RoutedBatch(Vec<(String, Routing)>);

impl RoutedBatch {
    /// Appends the routing of further sequences in `module`.
    pub(super) fn add(&mut self, module: &str, routing: &Routing) {
        match self.0.iter_mut().find(|(known, _)| known == module) {
            Some((_, known)) => {
                known.taken.extend(&routing.taken);
                known.rows.extend(&routing.rows);
            }
            None => self.0.push((module.to_owned(), routing.clone())),
        }
    }

    /// Returns the sums over `batch` sequences from `start` on, by module.
    pub(super) fn of_rows(&self, start: usize, batch: usize) -> Vec<RoutedModule> {
        let own = |(module, routing): &(String, Routing)| {
            let Routing { num_ways, top_k, taken, rows } = routing;
            let mut sums = vec![0; *num_ways];
            let sequences = taken.chunks_exact((*num_ways).max(1)).skip(start).take(batch);
            for sequence in sequences {
                sums.iter_mut().zip(sequence).for_each(|(sum, count)| *sum += u64::from(*count));
            }
            RoutedModule {
                module: module.clone(),
                top_k: *top_k,
                num_tokens: rows.iter().skip(start).take(batch).copied().map(u64::from).sum(),
                taken: sums,
            }
        };
        self.0.iter().map(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_of_its_own_tokens() {
        let routing = |taken: &[u32], rows: &[u32]| Routing {
            num_ways: 2,
            top_k: 1,
            taken: taken.to_vec(),
            rows: rows.to_vec(),
        };
        let mut batch = RoutedBatch::default();
        batch.add("a", &routing(&[1, 2, 3, 0], &[3, 3]));
        batch.add("a", &routing(&[0, 5], &[5]));
        let own = batch.of_rows(1, 2);
        let taken = vec![3, 5];
        assert_eq!(own, [RoutedModule { module: "a".into(), top_k: 1, num_tokens: 8, taken }]);
        assert_eq!(batch.of_rows(0, 1)[0].taken, [1, 2]);
    }
}
