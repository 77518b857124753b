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
    batch::Batch,
    planner::Chosen,
    queue::{FamilyKey, Job, Next, Queue, Receiver, Task, queue},
    run::{Work, run_chunks},
};
use crate::{
    arch::ModelInput,
    family::ModuleId,
    runtime::{Executor, Residency, RuntimeError},
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
    /// The plan that ran.
    pub(super) chosen: Chosen,
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
        past: HashMap::new(),
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
    /// What families of a name that are gone have loaded and lost.
    past: HashMap<String, Residency>,
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
                Next::Batch(batch) => self.answer(batch, receiver),
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
        match executor.load_ahead(module) {
            Ok(true) => {}
            Ok(false) => self.preload.clear(),
            Err(error) => tracing::warn!(%error, "a module cannot be loaded ahead of its use"),
        }
        self.report_residency();
    }

    fn remove(&mut self, family: FamilyKey) {
        self.preload.retain(|(key, _)| *key != family);
        if let Some(executor) = self.executors.remove(&family) {
            let name = executor.family().manifest.name.clone();
            self.remember(&name, &executor.residency());
            drop(executor);
            self.report_residency();
        }
    }

    /// Runs a batch, but not the jobs for which nobody waits any more.
    fn answer(&mut self, Batch { mut jobs, chosen }: Batch, receiver: &Receiver) {
        let executor = jobs.first().and_then(|job| self.executors.get(&job.family));
        let Some(executor) = executor else {
            // A family is removed after its last job, so these wait for no answer.
            return;
        };
        let name = executor.family().manifest.name.clone();
        jobs.retain(|job| !job.reply.is_closed());
        jobs.iter_mut().for_each(|job| job.place = None);
        if jobs.is_empty() {
            return;
        }
        match chosen {
            Ok(chosen) => self.run_batch(&name, jobs, &chosen, receiver),
            Err(error) => refuse(jobs, error),
        }
    }

    /// Runs jobs together; each again by itself where that fails, so that only one that cannot run
    /// fails.
    fn run_batch(&mut self, name: &str, mut jobs: Vec<Job>, chosen: &Chosen, receiver: &Receiver) {
        let Some(family) = jobs.first().map(|job| job.family) else {
            return;
        };
        let start = Instant::now();
        receiver.begin(chosen.predicted);
        let compute = AssertUnwindSafe(|| self.compute(name, family, &mut jobs, chosen));
        let result = catch_unwind(compute).unwrap_or_else(|_| {
            self.rebuild(name, family);
            Err(ServeError::Panicked)
        });
        receiver.end();
        match result {
            Ok(outputs) => reply(jobs, outputs, chosen, start),
            Err(_) if jobs.len() > 1 => {
                for job in jobs {
                    let chosen = job.chosen.clone().anew();
                    self.run_batch(name, vec![job], &chosen, receiver);
                }
            }
            Err(error) => refuse(jobs, error),
        }
    }

    /// Replaces a family's sessions, of which one may have been left in the middle of something.
    fn rebuild(&mut self, name: &str, family: FamilyKey) {
        if let Some(executor) = self.executors.get_mut(&family) {
            let anew = executor.anew();
            let old = std::mem::replace(executor, anew).residency();
            self.remember(name, &old);
            self.report_residency();
        }
    }

    /// Runs a plan on the inputs of all jobs; returns an output for each.
    fn compute(
        &mut self,
        name: &str,
        family: FamilyKey,
        jobs: &mut [Job],
        chosen: &Chosen,
    ) -> Result<Vec<Tensor>, ServeError> {
        let computing: Vec<Span> =
            jobs.iter().map(|job| tracing::debug_span!(parent: &job.request, "compute")).collect();
        let input = match &mut *jobs {
            [job] => job.input.take(),
            jobs => {
                let inputs: Vec<&ModelInput> =
                    jobs.iter().filter_map(|job| job.input.as_ref()).collect();
                ModelInput::concatenate(&inputs)
            }
        };
        let input = input.ok_or(ServeError::WorkerGone)?;
        let planner = jobs[0].planner.clone();
        let num_rows = input.batch();
        let max_batch = planner.loaded.profile.max_batch();
        let work = Work { path: &chosen.path, input, max_batch };
        let start = Instant::now();
        let (output, has_loaded) = computing[0].in_scope(|| self.run(name, family, work))?;
        if !has_loaded {
            planner.correction.learn(chosen.profiled, start.elapsed());
        }
        self.observer.batch_ran(name, num_rows, planner.correction.factor());
        let rows: Vec<usize> = jobs.iter().map(|job| job.shape.0).collect();
        Ok(split(output, &rows))
    }

    /// Runs a path in chunks of at most the largest batch; tells whether modules were loaded.
    fn run(
        &mut self,
        name: &str,
        family: FamilyKey,
        work: Work<'_>,
    ) -> Result<(Tensor, bool), ServeError> {
        let executor = self.executors.get_mut(&family).ok_or(ServeError::WorkerGone)?;
        let before = executor.residency();
        let output =
            run_chunks(executor, name, work, &*self.observer).map_err(|error| told(name, error))?;
        let has_loaded = executor.residency() != before;
        if has_loaded {
            self.report_residency();
        }
        Ok((output, has_loaded))
    }

    fn remember(&mut self, name: &str, gone: &Residency) {
        let past = self.past.entry(name.to_owned()).or_default();
        past.num_loads += gone.num_loads;
        past.num_evictions += gone.num_evictions;
    }

    /// Tells what all versions of each family hold together: one may have given way to another.
    fn report_residency(&self) {
        let mut sums = self.past.clone();
        for executor in self.executors.values() {
            let sum = sums.entry(executor.family().manifest.name.clone()).or_default();
            let own = executor.residency();
            sum.num_modules += own.num_modules;
            sum.weight_bytes += own.weight_bytes;
            sum.num_loads += own.num_loads;
            sum.num_evictions += own.num_evictions;
        }
        for (name, sum) in &sums {
            self.observer.residency_changed(name, sum);
        }
    }
}

/// Tells the operator, not the client, which file was changed under a family, or how much memory is
/// missing.
fn told(name: &str, error: RuntimeError) -> ServeError {
    let state = match error {
        RuntimeError::Changed { .. } => "its files were changed; it must be loaded again",
        RuntimeError::MemoryLimit { .. } => "it does not fit into the memory limit",
        _ => return error.into(),
    };
    tracing::error!(family = name, %error);
    ServeError::Unavailable { name: name.to_owned(), state }
}

/// Answers every job of a batch that began at `start`.
fn reply(jobs: Vec<Job>, outputs: Vec<Tensor>, chosen: &Chosen, start: Instant) {
    let compute = start.elapsed();
    for (job, output) in jobs.into_iter().zip(outputs) {
        let mut chosen = chosen.clone();
        chosen.plan.predicted_latency += job.before;
        let done = Done { output, queue: start - job.queued, compute, chosen };
        // A span ends when nobody holds it any more: the request's must not wait for this thread.
        drop(job.request);
        // Nobody hears a failure to send: the client has gone in the meantime.
        drop(job.reply.send(Ok(done)));
    }
}

/// Refuses the job for which there is no time, or which failed.
fn refuse(jobs: Vec<Job>, error: ServeError) {
    let mut errors = std::iter::once(error).chain(std::iter::repeat_with(|| ServeError::Late));
    for (job, error) in jobs.into_iter().zip(&mut errors) {
        drop(job.request);
        drop(job.reply.send(Err(error)));
    }
}

/// Splits `[rows, width]` into tensors of so many rows each.
fn split(output: Tensor, rows: &[usize]) -> Vec<Tensor> {
    if rows.len() == 1 {
        return vec![output];
    }
    let width: usize = output.shape()[1..].iter().product();
    let extents = output.shape()[1..].to_vec();
    let mut values = output.as_f32().unwrap_or_default();
    let mut outputs = Vec::with_capacity(rows.len());
    for num_rows in rows {
        let (own, rest) = values.split_at(num_rows * width);
        values = rest;
        let shape = std::iter::once(*num_rows).chain(extents.iter().copied()).collect();
        let tensor = Tensor::new(shape, TensorData::F32(own.to_vec()));
        outputs.push(tensor.expect("rows times width is the number of values"));
    }
    outputs
}
