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
    use crate::{
        family::PlanId,
        serve::support_tests::{BEST, CHEAP, Runs, images, running},
    };

    fn no_room() -> RuntimeError {
        RuntimeError::MemoryLimit { bytes: 3, missing: 2, limit: 1 }
    }

    /// Returns the chunks in which `num_rows` rows run, at most `most` at once, and the error of
    /// the last one. `fault` returns the fault of a chunk, if it has one.
    fn chunks(
        num_rows: usize,
        most: usize,
        fault: impl Fn(&Range<usize>) -> Option<Failed>,
    ) -> (Vec<[usize; 2]>, Option<RuntimeError>) {
        let mut tried = Vec::new();
        let run = |rows: Range<usize>| {
            tried.push([rows.start, rows.end]);
            fault(&rows).map_or(Ok(Vec::new()), Err)
        };
        let error = in_chunks(num_rows, most, run).err();
        (tried, error)
    }

    #[test]
    fn rows_run_in_order_in_chunks_of_at_most_the_largest_batch() {
        for (num_rows, most, expected) in [
            (5, 2, &[[0, 2], [2, 4], [4, 5]][..]),
            (4, 2, &[[0, 2], [2, 4]]),
            (2, 16, &[[0, 2]]),
            (0, 16, &[]),
        ] {
            let (tried, error) = chunks(num_rows, most, |_| None);
            assert!(error.is_none());
            assert_eq!(tried, expected);
        }
    }

    #[test]
    fn chunks_that_do_not_fit_into_memory_are_halved() {
        let over = |most: usize| {
            move |rows: &Range<usize>| {
                let error = no_room();
                (rows.len() > most).then_some(Failed { error, has_begun: false })
            }
        };
        let (tried, error) = chunks(7, 5, over(2));
        assert_eq!(tried, [[0, 5], [0, 2], [2, 4], [4, 6], [6, 7]], "smaller chunks stay small");
        assert!(error.is_none());
        let (tried, error) = chunks(3, 3, over(0));
        assert_eq!(tried, [[0, 3], [0, 1]], "one row cannot be halved");
        assert!(matches!(error, Some(RuntimeError::MemoryLimit { .. })));
    }

    #[test]
    fn a_chunk_that_has_begun_or_fails_otherwise_is_not_tried_again() {
        let begun = |_: &Range<usize>| Some(Failed { error: no_room(), has_begun: true });
        let other =
            |_: &Range<usize>| Some(Failed { error: RuntimeError::NoOutput, has_begun: false });
        let (tried, error) = chunks(4, 2, begun);
        assert!(tried == [[0, 2]] && matches!(error, Some(RuntimeError::MemoryLimit { .. })));
        let (tried, error) = chunks(4, 2, other);
        assert!(tried == [[0, 2]] && matches!(error, Some(RuntimeError::NoOutput)));
    }

    /// Runs the plan `id` on images of these greys.
    fn run(executor: &Executor, id: &str, max_batch: usize, greys: &[f32], runs: &Runs) -> Ran {
        let plan = &PlanId::parse(&executor.family().graph, id).expect("a plan");
        let work = Work { plan, input: images(greys), max_batch };
        run_chunks(executor, "fashion", work, runs).expect("it runs")
    }

    #[test]
    fn outputs_of_chunks_are_put_together_in_the_order_of_their_rows() {
        let (_planner, executor) = running();
        let greys = [0.0, 0.4, -0.7, 1.0, 0.4];
        let ran = run(&executor, CHEAP, 2, &greys, &Runs::default());
        assert!(ran.places.is_none(), "images have no tokens");
        let scores = ran.outputs[0].as_f32().expect("scores");
        assert_eq!(ran.outputs[0].shape(), [5, 10]);
        let mut all = Vec::new();
        for (grey, found) in greys.iter().zip(scores.chunks(10)) {
            let alone = run(&executor, CHEAP, 2, &[*grey], &Runs::default());
            let expected = alone.outputs[0].as_f32().expect("scores");
            let is_near = expected.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(is_near, "{grey}: {found:?} is not {expected:?}");
            all.push(found);
        }
        let differs = all[0].iter().zip(all[1]).any(|(a, b)| (a - b).abs() > 1e-2);
        assert!(differs, "the rows could be told apart");
    }

    #[test]
    fn a_module_s_time_is_the_sum_over_its_chunks() {
        let (_planner, executor) = running();
        let runs = Runs::default();
        let ran = run(&executor, BEST, 2, &[0.5; 5], &runs);
        let graph = &executor.family().graph;
        let plan = PlanId::parse(graph, BEST).expect("a plan");
        let modules: Vec<ModuleId> = ran.times.iter().map(|(module, _)| *module).collect();
        assert_eq!(modules, plan.path, "each module once, in the order of the path");
        let heard = runs.modules.lock().expect("no panic");
        assert_eq!(heard.len(), 3 * plan.path.len(), "two, two and one image");
        for (module, time) in &ran.times {
            let own = heard.iter().filter(|(name, _)| *name == graph.module(*module).name);
            assert_eq!(own.map(|(_, time)| *time).sum::<Duration>(), *time);
        }
    }

    #[test]
    fn a_chunk_takes_a_small_part_of_the_memory_limit() {
        let (planner, executor) = running();
        let limit = 64 << 20;
        let row = |bytes: f64| {
            let grid = crate::plan::Grid::new(vec![1], vec![1], vec![bytes]).expect("a grid");
            let path = PlanId::parse(&planner.loaded.family.graph, CHEAP).expect("a plan").path;
            let limited = executor.runtime().apart(Some(limit));
            let limited = Executor::new(limited, planner.loaded.family.clone());
            limited.with_activations(path.into_iter().map(|id| (id, grid.clone())))
        };
        for (bytes, expected) in [(1_000.0, 4), (1e6, 2), (1e7, 1)] {
            let (runs, greys) = (Runs::default(), [0.5; 4]);
            run(&row(bytes), CHEAP, 16, &greys, &runs);
            let heard = runs.modules.lock().expect("no panic").len();
            assert_eq!(heard, 4 * 4_usize.div_ceil(expected), "{bytes} bytes for each image");
        }
    }

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
