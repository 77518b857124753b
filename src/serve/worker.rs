//! The inference thread: owns every session and runs one request at a time.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::Span;

use super::{
    Observer, ServeError,
    planner::Chosen,
    queue::{FamilyKey, Job, Next, Queue, Receiver, Task, queue},
};
use crate::{
    arch::ModelInput,
    family::ModuleId,
    runtime::{Executor, ModuleObserver, Residency, RuntimeError, SideInputs},
    tensor::{Tensor, TensorData},
};

/// A finished job.
#[derive(Debug)]
pub(super) struct Done {
    /// The output.
    pub(super) output: Tensor,
    /// How long the job waited.
    pub(super) queue: Duration,
    /// How long it ran.
    pub(super) compute: Duration,
    /// Whether modules had to be loaded for it.
    pub(super) has_loaded: bool,
    /// The plan that ran.
    pub(super) chosen: Chosen,
}

/// A path and what goes through it.
#[derive(Debug)]
struct Work<'a> {
    path: &'a [ModuleId],
    input: ModelInput,
    /// The most sequences that run at once.
    max_batch: usize,
}

/// The inference thread. When this is dropped the thread is outside ONNX Runtime and stays there,
/// so that the process may end: its libraries must not be torn down under a running session.
#[derive(Debug)]
pub struct InferenceThread {
    is_stopped: Arc<Mutex<bool>>,
}

impl Drop for InferenceThread {
    fn drop(&mut self) {
        *self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// Starts the inference thread, for which at most `limit` jobs wait; it ends when the returned
/// queue and its clones are dropped.
pub(super) fn start(
    limit: usize,
    observer: Arc<dyn Observer>,
) -> std::io::Result<(Queue, InferenceThread)> {
    let (queue, receiver) = queue(limit);
    let is_stopped = Arc::new(Mutex::new(false));
    let guard = InferenceThread { is_stopped: is_stopped.clone() };
    let worker = Worker {
        executors: HashMap::new(),
        past_loads: HashMap::new(),
        preload: VecDeque::new(),
        observer,
        is_stopped,
    };
    thread::Builder::new()
        .name("inference".into())
        .spawn(move || worker.run_until_closed(&receiver))?;
    Ok((queue, guard))
}

struct Worker {
    executors: HashMap<FamilyKey, Executor>,
    /// How many modules were loaded for families of a name that are gone.
    past_loads: HashMap<String, u64>,
    preload: VecDeque<(FamilyKey, ModuleId)>,
    observer: Arc<dyn Observer>,
    /// Held while the thread is inside ONNX Runtime.
    is_stopped: Arc<Mutex<bool>>,
}

impl Worker {
    fn run_until_closed(mut self, receiver: &Receiver) {
        loop {
            let next = receiver.next(self.preload.is_empty());
            let gate = self.is_stopped.clone();
            let is_stopped = gate.lock().unwrap_or_else(PoisonError::into_inner);
            if *is_stopped {
                return;
            }
            match next {
                Next::Job(job, allowance) => self.answer(*job, allowance, receiver),
                Next::Task(Task::Install { family, executor, preload }) => {
                    self.executors.insert(family, *executor);
                    self.preload.extend(preload.into_iter().map(|module| (family, module)));
                }
                Next::Task(Task::Remove(family)) => self.remove(family),
                Next::Nothing => {
                    if let Some((family, module)) = self.preload.pop_front() {
                        self.load(family, module);
                    }
                }
                Next::Closed => return,
            }
        }
    }

    fn load(&mut self, family: FamilyKey, module: ModuleId) {
        let Some(executor) = self.executors.get_mut(&family) else {
            return;
        };
        if let Err(error) = executor.load(&[module]) {
            tracing::warn!(%error, "a module cannot be loaded ahead of its use");
        }
        let name = executor.family().manifest.name.clone();
        self.report_residency(&name);
    }

    fn remove(&mut self, family: FamilyKey) {
        self.preload.retain(|(key, _)| *key != family);
        if let Some(executor) = self.executors.remove(&family) {
            let name = executor.family().manifest.name.clone();
            let loads = executor.residency().num_loads;
            *self.past_loads.entry(name.clone()).or_default() += loads;
            drop(executor);
            self.report_residency(&name);
        }
    }

    /// Runs a job unless nobody waits for it any more, or it is too late for it.
    fn answer(&mut self, mut job: Job, allowance: Duration, receiver: &Receiver) {
        // A family is removed after its last job, so this is one that waits for no answer.
        let Some(executor) = self.executors.get(&job.family) else {
            return;
        };
        let name = executor.family().manifest.name.clone();
        self.observer.queue_changed(&name, -1);
        if job.reply.is_closed() {
            return;
        }
        job.waiting = Span::none();
        let result = in_time(&mut job, allowance).and_then(|queue| {
            receiver.begin(job.chosen.predicted);
            let compute = AssertUnwindSafe(|| self.compute(&name, &mut job, queue));
            let done = catch_unwind(compute).unwrap_or_else(|_| {
                self.rebuild(&name, job.family);
                Err(ServeError::Panicked)
            });
            receiver.end();
            done
        });
        // A span ends when nobody holds it any more: the request's must not wait for this thread.
        job.request = Span::none();
        // Nobody hears a failure to send: the client has gone in the meantime.
        drop(job.reply.send(result));
    }

    /// Replaces a family's sessions, of which one may have been left in the middle of something.
    fn rebuild(&mut self, name: &str, family: FamilyKey) {
        if let Some(executor) = self.executors.get_mut(&family) {
            *self.past_loads.entry(name.to_owned()).or_default() += executor.residency().num_loads;
            let anew = executor.anew();
            drop(std::mem::replace(executor, anew));
            self.report_residency(name);
        }
    }

    /// Runs a job's plan.
    fn compute(&mut self, name: &str, job: &mut Job, queue: Duration) -> Result<Done, ServeError> {
        let executor = self.executors.get(&job.family).ok_or(ServeError::WorkerGone)?;
        let loads = executor.residency().num_loads;
        let start = Instant::now();
        let computing = tracing::debug_span!(parent: &job.request, "compute");
        let max_batch = job.planner.loaded.profile.max_batch();
        let input = job.input.take().ok_or(ServeError::WorkerGone)?;
        let work = Work { path: &job.chosen.path, input, max_batch };
        let output = computing.in_scope(|| self.run(name, job.family, work))?;
        let has_loaded = |executor: &Executor| executor.residency().num_loads > loads;
        let has_loaded = self.executors.get(&job.family).is_some_and(has_loaded);
        let chosen = job.chosen.clone();
        Ok(Done { output, queue, compute: start.elapsed(), has_loaded, chosen })
    }

    /// Runs a job in chunks of at most its largest batch.
    fn run(&mut self, name: &str, family: FamilyKey, work: Work<'_>) -> Result<Tensor, ServeError> {
        let executor = self.executors.get_mut(&family).ok_or(ServeError::WorkerGone)?;
        let before = executor.residency();
        let outputs = run_chunks(executor, name, work, &*self.observer)
            .map_err(|error| told_if_changed(name, error))?;
        if executor.residency() != before {
            self.report_residency(name);
        }
        Ok(concatenate(outputs))
    }

    /// Tells what all versions of a family hold together.
    fn report_residency(&self, name: &str) {
        let mut sum = Residency {
            num_loads: self.past_loads.get(name).copied().unwrap_or(0),
            ..Residency::default()
        };
        for executor in self.executors.values() {
            if executor.family().manifest.name == name {
                let Residency { num_modules, weight_bytes, num_loads } = executor.residency();
                sum.num_modules += num_modules;
                sum.weight_bytes += weight_bytes;
                sum.num_loads += num_loads;
            }
        }
        self.observer.residency_changed(name, &sum);
    }
}

/// Tells the operator, not the client, which file was changed under a family.
fn told_if_changed(name: &str, error: RuntimeError) -> ServeError {
    if !matches!(error, RuntimeError::Changed { .. }) {
        return error.into();
    }
    tracing::error!(family = name, %error);
    let state = "its files were changed; it must be loaded again";
    ServeError::Unavailable { name: name.to_owned(), state }
}

/// Chooses another plan where there is no time for the first any more; returns how long the job
/// has waited.
///
/// # Errors
///
/// Fails when the job's deadline has passed, or no plan can meet it.
fn in_time(job: &mut Job, allowance: Duration) -> Result<Duration, ServeError> {
    let now = Instant::now();
    let waited = now - job.queued;
    let Some(terms) = &job.terms else {
        let is_late = now > job.deadline;
        return if is_late { Err(ServeError::DeadlineExceeded { waited }) } else { Ok(waited) };
    };
    let left = job.deadline.saturating_duration_since(now);
    if job.chosen.predicted > allowance.min(left) {
        job.chosen = job.planner.choose_again(&job.chosen, terms, allowance, left)?;
        job.chosen.plan.predicted_latency += job.queued - terms.arrival;
    }
    Ok(waited)
}

fn run_chunks(
    executor: &mut Executor,
    name: &str,
    work: Work<'_>,
    observer: &dyn Observer,
) -> Result<Vec<Tensor>, RuntimeError> {
    let family = executor.family().clone();
    let mut times = ModuleTimes { name, family: &family, observer };
    let mut outputs = Vec::new();
    for chunk in chunks(work.input, work.max_batch) {
        let sides = SideInputs::of_input(chunk)?;
        outputs.push(executor.run(work.path, &sides, &mut times)?);
    }
    Ok(outputs)
}

/// Passes module times on under the modules' names.
struct ModuleTimes<'a> {
    name: &'a str,
    family: &'a crate::arch::Family,
    observer: &'a dyn Observer,
}

impl ModuleObserver for ModuleTimes<'_> {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        let module = &self.family.graph.module(module).name;
        tracing::debug!(module, seconds = time.as_secs_f64(), "ran");
        self.observer.module_ran(self.name, module, time);
    }
}

/// Splits `input` into chunks of at most `max_batch` texts or images, texts cut to the chunk's
/// longest.
fn chunks(input: ModelInput, max_batch: usize) -> Vec<ModelInput> {
    let batch = input.batch();
    if batch <= max_batch && matches!(input, ModelInput::Pixels(_)) {
        return vec![input];
    }
    (0..batch)
        .step_by(max_batch.max(1))
        .map(|start| input.rows(start..batch.min(start + max_batch.max(1))))
        .collect()
}

/// Puts outputs of equal width below one another.
fn concatenate(mut outputs: Vec<Tensor>) -> Tensor {
    if outputs.len() == 1 {
        return outputs.swap_remove(0);
    }
    let width = outputs.first().map_or(0, |output| output.shape()[1..].iter().product());
    let mut values = Vec::new();
    for output in &outputs {
        values.extend_from_slice(output.as_f32().unwrap_or_default());
    }
    let rows = values.len().checked_div(width).unwrap_or(0);
    Tensor::new(vec![rows, width], TensorData::F32(values))
        .expect("rows times width is the number of values")
}
