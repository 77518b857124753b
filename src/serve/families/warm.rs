//! First run of a family's likely plans, before the family is ready. A session costs several times
//! as much when it is created, and again when it first runs. The machine may also be slower now
//! than when it was profiled. Even the first budgets are to be kept.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::loaded::LoadedFamily;
use crate::{
    family::{Manifest, ModuleId},
    input::{Encoding, ModelInput, Pixels},
    plan::{Plan, PlanEntry, Shape},
    runtime::{Executor, ModuleObserver, RuntimeError, SideInputs},
    serve::{
        admission::queue::Queue,
        generation::Generator,
        observe::Observer,
        planner::{Planner, learned::Run},
    },
};

/// Longest time to run a family's plans before it is ready.
const LONGEST: Duration = Duration::from_secs(2);

/// Number of runs from which the machine's speed is learned. `LONGEST_MEASURED` is their longest
/// time.
const NUM_MEASURED: usize = 40;
const LONGEST_MEASURED: Duration = Duration::from_millis(300);

/// Most threads that load modules of a family before it is ready.
const MAX_LOADERS: usize = 4;

/// Longest text of these runs, in tokens.
const MAX_TOKENS: usize = 64;

/// Loads the plans of every front, runs each of their modules once, and returns the plans. The
/// cheapest and the best plans come first. Both extremes have thus run when time or memory ends.
/// Further threads load modules of plans that come later, as many as inference has.
pub(super) fn warm_up(
    executor: &Executor,
    loaded: &LoadedFamily,
    is_stopped: &dyn Fn() -> bool,
) -> Vec<Plan> {
    let (plans, has_ended) = (likely(loaded), AtomicBool::new(false));
    let num_helpers = executor.runtime().num_threads().min(MAX_LOADERS).saturating_sub(1);
    thread::scope(|scope| {
        for _ in 0..num_helpers {
            let load = || load_ahead_of(executor, &plans, &has_ended);
            // Without the thread it takes longer.
            drop(thread::Builder::new().name("warm-up".into()).spawn_scoped(scope, load));
        }
        let ran = run_each(executor, loaded, &plans, is_stopped);
        has_ended.store(true, Ordering::Relaxed);
        ran
    })
}

/// Runs the best plan of a family that generates once, as a step. Its modules have other forms in
/// steps than for whole sequences; those are loaded when such a request comes.
pub(super) fn warm_up_steps(generator: &Generator, loaded: &LoadedFamily) {
    let best = loaded
        .table
        .entries()
        .iter()
        .max_by(|left, right| left.quality.value.total_cmp(&right.quality.value));
    if let Some(entry) = best
        && let Err(error) = generator.warm_up(&entry.plan)
    {
        tracing::warn!(plan = entry.id, %error, "a plan cannot be run ahead");
    }
}

/// Loads the modules of `plans` that are not loaded yet, until `has_ended` or memory ends.
fn load_ahead_of(executor: &Executor, plans: &[&PlanEntry], has_ended: &AtomicBool) {
    for module in plans.iter().flat_map(|entry| &entry.plan.path) {
        // The thread that runs the plan tells of an error.
        let has_room = executor.load_ahead(*module).unwrap_or(true);
        if !has_room || has_ended.load(Ordering::Relaxed) {
            break;
        }
    }
}

/// Loads `plans` one after another, and runs those with a module that did not run yet.
fn run_each(
    executor: &Executor,
    loaded: &LoadedFamily,
    plans: &[&PlanEntry],
    is_stopped: &dyn Fn() -> bool,
) -> Vec<Plan> {
    let (start, mut seen, mut ran) = (Instant::now(), HashSet::<ModuleId>::new(), Vec::new());
    for entry in plans {
        let plan = &entry.plan;
        let is_new = plan.path.iter().any(|module| !seen.contains(module));
        match if is_new { load_and_run(executor, loaded, plan) } else { Ok(true) } {
            Ok(true) => {
                seen.extend(&plan.path);
                ran.push(plan.clone());
            }
            Ok(false) => break,
            Err(error) => tracing::warn!(plan = entry.id, %error, "a plan cannot be run ahead"),
        }
        if start.elapsed() > LONGEST || is_stopped() {
            break;
        }
    }
    ran
}

/// Runs `plans` again, so that `planner` learns the machine's current speed.
pub(super) fn measure(
    executor: &Executor,
    plans: &[Plan],
    planner: &Planner,
    queue: &Queue,
    observer: &dyn Observer,
) {
    let start = Instant::now();
    for plan in plans.iter().cycle().take(NUM_MEASURED) {
        let (input, begun) = (blank(&planner.loaded.family.manifest), Instant::now());
        let shape = input.shape();
        let mut times = Times::default();
        let ran = run(executor, input, plan, &mut times);
        if ran.is_err() || start.elapsed() > LONGEST_MEASURED {
            break;
        }
        let (whole, is_alone) = (begun.elapsed(), queue.was_quiet_since(begun));
        let ended = Instant::now();
        planner.learn(&Run { shape, times: &times.0, whole, is_alone, ended }, observer);
    }
}

/// Returns the plans of the fronts at the profiled lengths, the extremes first.
fn likely(loaded: &LoadedFamily) -> Vec<&PlanEntry> {
    let fronts = loaded
        .profile
        .token_knots()
        .iter()
        .map(|tokens| loaded.table.front(Shape::new(1, *tokens)));
    let fronts: Vec<Vec<&PlanEntry>> = fronts.collect();
    let extremes = fronts.iter().flat_map(|front| front.first().into_iter().chain(front.last()));
    let mut seen = HashSet::new();
    let all = extremes.chain(fronts.iter().flatten()).copied();
    all.filter(|entry| seen.insert(entry.id.as_str())).collect()
}

/// Loads a plan's modules and runs it once. Returns whether there was room for all modules.
fn load_and_run(
    executor: &Executor,
    loaded: &LoadedFamily,
    plan: &Plan,
) -> Result<bool, RuntimeError> {
    for module in &plan.path {
        if !executor.load_ahead(*module)? {
            return Ok(false);
        }
    }
    run(executor, blank(&loaded.family.manifest), plan, &mut ()).map(|()| true)
}

fn run(
    executor: &Executor,
    input: ModelInput,
    plan: &Plan,
    observer: &mut impl ModuleObserver,
) -> Result<(), RuntimeError> {
    executor.run(plan, &SideInputs::of_input(input)?, observer).map(drop)
}

/// Time that each module took.
#[derive(Debug, Default)]
struct Times(Vec<(ModuleId, Duration)>);

impl ModuleObserver for Times {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        self.0.push((module, time));
    }
}

/// Returns an input of one text of equal tokens, or of one image of zeros.
fn blank(manifest: &Manifest) -> ModelInput {
    if let Some(image) = &manifest.image {
        let shape = [image.channels, image.height, image.width];
        return ModelInput::Pixels(Pixels { shape, values: vec![0.0; shape.iter().product()] });
    }
    let tokens = manifest.limits.max_tokens.clamp(1, MAX_TOKENS);
    let (input_ids, attention_mask) = (vec![0; tokens], vec![1; tokens]);
    ModelInput::Tokens(Encoding { batch: 1, tokens, input_ids, attention_mask })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        family::PlanId,
        serve::{
            admission::queue::queue,
            support_tests::{BEST, CHEAP, Runs, images, loaded, running},
        },
    };

    #[test]
    fn the_cheapest_and_the_best_plan_are_the_likeliest_and_none_is_run_twice() {
        let loaded = loaded();
        let front = loaded.table.front(Shape::new(1, 1));
        let plans: Vec<&str> = likely(&loaded).iter().map(|entry| entry.id.as_str()).collect();
        assert!(front.len() > 3, "the extremes are not all");
        let middle = &front[1..front.len() - 1];
        let expected = [front[0], front[front.len() - 1]].into_iter().chain(middle.iter().copied());
        assert_eq!(plans, expected.map(|entry| entry.id.as_str()).collect::<Vec<_>>());
    }

    #[test]
    fn likely_plans_are_loaded_and_run_in_their_order() {
        let (planner, executor) = running();
        let plan = |id: &str| PlanId::parse(&executor.family().graph, id).expect("a plan");
        let front = planner.loaded.table.front(Shape::new(1, 1));
        let ran = warm_up(&executor, &planner.loaded, &|| false);
        assert_eq!(ran[0], plan(CHEAP), "the cheapest comes first");
        assert_eq!(ran[1], plan(BEST));
        assert_eq!(ran.len(), front.len());
        let load_times = executor.load_times();
        let modules = ran.iter().flat_map(|plan| &plan.path);
        assert!(modules.into_iter().all(|id| load_times[id.0].is_zero()), "they stay loaded");
    }

    #[test]
    fn further_threads_load_modules_of_plans_until_the_plans_ran() {
        let (planner, executor) = running();
        let plans = likely(&planner.loaded);
        load_ahead_of(&executor, &plans, &AtomicBool::new(true));
        assert_eq!(executor.residency().num_loads, 1, "it looks after each module");
        load_ahead_of(&executor, &plans, &AtomicBool::new(false));
        let load_times = executor.load_times();
        let modules = plans.iter().flat_map(|entry| &entry.plan.path);
        assert!(modules.into_iter().all(|id| load_times[id.0].is_zero()));
        let num_loads = executor.residency().num_loads;
        assert_eq!(warm_up(&executor, &planner.loaded, &|| false).len(), plans.len());
        assert_eq!(executor.residency().num_loads, num_loads, "each is loaded once");
    }

    #[test]
    fn a_server_that_stops_runs_no_further_plan() {
        let (planner, executor) = running();
        assert_eq!(warm_up(&executor, &planner.loaded, &|| true).len(), 1);
    }

    #[test]
    fn nothing_is_run_ahead_that_memory_has_no_room_for() {
        let (planner, executor) = running();
        let full = executor.runtime().apart(Some(1));
        let full = Executor::new(full, executor.family().clone());
        assert_eq!(warm_up(&full, &planner.loaded, &|| false), []);
        assert_eq!(full.residency().num_loads, 0);
    }

    #[test]
    fn the_machine_s_speed_is_learned_while_nothing_else_runs() {
        let (planner, executor) = running();
        let plans = warm_up(&executor, &planner.loaded, &|| false);
        let (queue, receivers) = queue(1, 1);
        let busy = Runs::default();
        let begun = receivers[0].begin(Duration::from_secs(1).into());
        measure(&executor, &plans, &planner, &queue, &busy);
        assert_eq!(busy.num_learned(), 0, "a batch runs beside it");
        receivers[0].end(begun, &[]);
        let quiet = Runs::default();
        measure(&executor, &plans, &planner, &queue, &quiet);
        assert!(quiet.num_learned() >= plans[0].path.len(), "at least one run is measured");
    }

    #[test]
    fn a_blank_input_is_one_image_or_one_text_of_bounded_length() {
        let (_, executor) = running();
        let mut manifest = executor.family().manifest.clone();
        assert_eq!(blank(&manifest), images(&[0.0]));
        manifest.image = None;
        for (max_tokens, expected) in [(0, 1), (8, 8), (512, MAX_TOKENS)] {
            manifest.limits.max_tokens = max_tokens;
            let ModelInput::Tokens(text) = blank(&manifest) else { panic!("a text") };
            assert_eq!((text.batch, text.tokens), (1, expected));
            assert_eq!(text.input_ids, vec![0; expected]);
            assert_eq!(text.attention_mask, vec![1; expected]);
        }
    }
}
