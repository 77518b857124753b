//! The inference thread: owns every session and runs one request at a time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};
use tracing::Span;

use super::{Observer, ServeError};
use crate::{
    arch::ModelInput,
    family::ModuleId,
    runtime::{Executor, ModuleObserver, Residency, RuntimeError, SideInputs},
    tensor::{Tensor, TensorData},
};

/// A family as the thread knows it; one that is loaded anew gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FamilyKey(pub(super) u64);

/// What the inference thread is asked to do.
#[derive(Debug)]
enum Task {
    Answer(Box<Job>),
    Install { family: FamilyKey, executor: Box<Executor>, preload: Vec<ModuleId> },
    Remove(FamilyKey),
}

/// The way to the inference thread.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    tasks: mpsc::UnboundedSender<Task>,
    num_waiting: Arc<AtomicUsize>,
    limit: usize,
}

/// What the inference thread is asked to run.
#[derive(Debug)]
pub(super) struct Job {
    /// The family that answers.
    pub(super) family: FamilyKey,
    /// What is run.
    pub(super) work: Work,
    /// When it was queued.
    pub(super) queued: Instant,
    /// The span of its request.
    pub(super) request: Span,
    /// The span of its waiting.
    pub(super) waiting: Span,
    /// When it is not worth running any more.
    pub(super) deadline: Instant,
    /// Where the answer goes; closed when nobody waits for it.
    pub(super) reply: oneshot::Sender<Result<Done, ServeError>>,
}

/// A path and what goes through it.
#[derive(Debug)]
pub(super) struct Work {
    /// The path.
    pub(super) path: Vec<ModuleId>,
    /// What the path reads.
    pub(super) input: ModelInput,
    /// The most sequences that run at once.
    pub(super) max_batch: usize,
}

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

impl Queue {
    /// Queues a job.
    ///
    /// # Errors
    ///
    /// Fails when as many jobs wait as may, or the thread is gone.
    pub(super) fn push(&self, job: Job) -> Result<(), QueueError> {
        let room = |waiting: usize| (waiting < self.limit).then_some(waiting + 1);
        self.num_waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .map_err(|_| QueueError::Full { limit: self.limit })?;
        self.tasks.send(Task::Answer(Box::new(job))).map_err(|_| QueueError::Closed)
    }

    /// Hands a family's executor over; `preload` is loaded while no job waits.
    pub(super) fn install(&self, family: FamilyKey, executor: Executor, preload: Vec<ModuleId>) {
        // Nobody is there to run it when the thread is gone, and nothing is lost.
        drop(self.tasks.send(Task::Install { family, executor: Box::new(executor), preload }));
    }

    /// Lets go of a family once the jobs queued before are done.
    pub(super) fn remove(&self, family: FamilyKey) {
        drop(self.tasks.send(Task::Remove(family)));
    }
}

/// Why a job is not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueError {
    /// As many wait as may.
    Full {
        /// How many that is.
        limit: usize,
    },
    /// The thread is gone.
    Closed,
}

/// Starts the inference thread, for which at most `limit` jobs wait; it ends when the returned
/// queue and its clones are dropped.
pub(super) fn start(
    limit: usize,
    observer: Arc<dyn Observer>,
) -> std::io::Result<(Queue, InferenceThread)> {
    #[expect(clippy::disallowed_methods, reason = "jobs are counted, families are few")]
    let (tasks, receiver) = mpsc::unbounded_channel();
    let num_waiting = Arc::new(AtomicUsize::new(0));
    let is_stopped = Arc::new(Mutex::new(false));
    let guard = InferenceThread { is_stopped: is_stopped.clone() };
    let worker = Worker {
        executors: HashMap::new(),
        past_loads: HashMap::new(),
        preload: VecDeque::new(),
        num_waiting: num_waiting.clone(),
        observer,
        is_stopped,
    };
    thread::Builder::new()
        .name("inference".into())
        .spawn(move || worker.run_until_closed(receiver))?;
    Ok((Queue { tasks, num_waiting, limit }, guard))
}

struct Worker {
    executors: HashMap<FamilyKey, Executor>,
    /// How many modules were loaded for families of a name that are gone.
    past_loads: HashMap<String, u64>,
    preload: VecDeque<(FamilyKey, ModuleId)>,
    num_waiting: Arc<AtomicUsize>,
    observer: Arc<dyn Observer>,
    /// Held while the thread is inside ONNX Runtime.
    is_stopped: Arc<Mutex<bool>>,
}

impl Worker {
    fn run_until_closed(mut self, mut receiver: mpsc::UnboundedReceiver<Task>) {
        while let Some(step) = self.next(&mut receiver) {
            let gate = self.is_stopped.clone();
            let is_stopped = gate.lock().unwrap_or_else(PoisonError::into_inner);
            if *is_stopped {
                return;
            }
            match step {
                Step::Load(family, module) => self.load(family, module),
                Step::Do(Task::Answer(job)) => {
                    self.num_waiting.fetch_sub(1, Ordering::Relaxed);
                    self.answer(*job);
                }
                Step::Do(Task::Install { family, executor, preload }) => {
                    self.executors.insert(family, *executor);
                    self.preload.extend(preload.into_iter().map(|module| (family, module)));
                }
                Step::Do(Task::Remove(family)) => self.remove(family),
            }
        }
    }

    /// Returns what to do next: what is asked for, or a module to load while nothing is.
    fn next(&mut self, receiver: &mut mpsc::UnboundedReceiver<Task>) -> Option<Step> {
        match receiver.try_recv() {
            Ok(task) => Some(Step::Do(task)),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => match self.preload.pop_front() {
                Some((family, module)) => Some(Step::Load(family, module)),
                None => receiver.blocking_recv().map(Step::Do),
            },
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

    /// Runs a job unless nobody waits for it any more.
    fn answer(&mut self, mut job: Job) {
        // A family is removed after its last job, so this is one that waits for no answer.
        let Some(executor) = self.executors.get(&job.family) else {
            return;
        };
        let name = executor.family().manifest.name.clone();
        let loads = executor.residency().num_loads;
        self.observer.queue_changed(&name, -1);
        if job.reply.is_closed() {
            return;
        }
        let start = Instant::now();
        let queue = start - job.queued;
        job.waiting = Span::none();
        let result = if start > job.deadline {
            Err(ServeError::DeadlineExceeded { waited: queue })
        } else {
            let computing = tracing::debug_span!(parent: &job.request, "compute");
            let ran = computing.in_scope(|| self.run(&name, job.family, job.work));
            let has_loaded = |executor: &Executor| executor.residency().num_loads > loads;
            let has_loaded = self.executors.get(&job.family).is_some_and(has_loaded);
            ran.map(|output| Done { output, queue, compute: start.elapsed(), has_loaded })
        };
        // A span ends when nobody holds it any more: the request's must not wait for this thread.
        job.request = Span::none();
        // Nobody hears a failure to send: the client has gone in the meantime.
        drop(job.reply.send(result));
    }

    /// Runs a job in chunks of at most its largest batch.
    fn run(&mut self, name: &str, family: FamilyKey, work: Work) -> Result<Tensor, ServeError> {
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

/// What the thread does next.
enum Step {
    Load(FamilyKey, ModuleId),
    Do(Task),
}

fn run_chunks(
    executor: &mut Executor,
    name: &str,
    work: Work,
    observer: &dyn Observer,
) -> Result<Vec<Tensor>, RuntimeError> {
    let family = executor.family().clone();
    let mut times = ModuleTimes { name, family: &family, observer };
    let mut outputs = Vec::new();
    for chunk in chunks(work.input, work.max_batch) {
        let sides = SideInputs::of_input(chunk)?;
        outputs.push(executor.run(&work.path, &sides, &mut times)?);
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
