//! The inference thread: owns every session and runs one request at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use super::{Observer, ServeError};
use crate::{
    arch::ModelInput,
    family::ModuleId,
    runtime::{Executor, ModuleObserver, RuntimeError, SideInputs},
    tensor::{Tensor, TensorData},
};

/// What the inference thread is asked to run.
#[derive(Debug)]
pub(super) struct Job {
    /// The family's position among the thread's executors.
    pub(super) family: usize,
    /// The path.
    pub(super) path: Vec<ModuleId>,
    /// What the path reads.
    pub(super) input: ModelInput,
    /// The most sequences that run at once.
    pub(super) max_batch: usize,
    /// When it was queued.
    pub(super) queued: Instant,
    /// When it is not worth running any more.
    pub(super) deadline: Instant,
    /// Where the answer goes; closed when nobody waits for it.
    pub(super) reply: oneshot::Sender<Result<Done, ServeError>>,
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

/// Starts the inference thread over `executors`; it ends when the returned sender is dropped.
///
/// While no job waits, it loads the modules in `preload`, so that requests find them loaded.
pub(super) fn start(
    executors: Vec<Executor>,
    preload: Vec<(usize, ModuleId)>,
    queue_limit: usize,
    observer: Arc<dyn Observer>,
) -> std::io::Result<(mpsc::Sender<Job>, InferenceThread)> {
    let (sender, receiver) = mpsc::channel(queue_limit);
    let is_stopped = Arc::new(Mutex::new(false));
    let guard = InferenceThread { is_stopped: is_stopped.clone() };
    let worker = Worker { executors, preload: preload.into(), observer, is_stopped };
    thread::Builder::new()
        .name("inference".into())
        .spawn(move || worker.run_until_closed(receiver))?;
    Ok((sender, guard))
}

struct Worker {
    executors: Vec<Executor>,
    preload: VecDeque<(usize, ModuleId)>,
    observer: Arc<dyn Observer>,
    /// Held while the thread is inside ONNX Runtime.
    is_stopped: Arc<Mutex<bool>>,
}

impl Worker {
    fn run_until_closed(mut self, mut receiver: mpsc::Receiver<Job>) {
        loop {
            let task = match receiver.try_recv() {
                Ok(job) => Task::Answer(job),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => match self.preload.pop_front() {
                    Some((family, module)) => Task::Load(family, module),
                    None => match receiver.blocking_recv() {
                        Some(job) => Task::Answer(job),
                        None => return,
                    },
                },
            };
            let gate = self.is_stopped.clone();
            let is_stopped = gate.lock().unwrap_or_else(PoisonError::into_inner);
            if *is_stopped {
                return;
            }
            match task {
                Task::Load(family, module) => self.load(family, module),
                Task::Answer(job) => self.answer(job),
            }
        }
    }

    fn load(&mut self, family: usize, module: ModuleId) {
        if let Err(error) = self.executors[family].load(&[module]) {
            tracing::warn!(%error, "a module cannot be loaded ahead of its use");
        }
        self.report_residency(family);
    }

    /// Runs a job unless nobody waits for it any more.
    fn answer(&mut self, job: Job) {
        let name = self.executors[job.family].family().manifest.name.clone();
        self.observer.queue_changed(&name, -1);
        if job.reply.is_closed() {
            return;
        }
        let start = Instant::now();
        let queue = start - job.queued;
        let result = if start > job.deadline {
            Err(ServeError::DeadlineExceeded { waited: queue })
        } else {
            let loads = self.executors[job.family].residency().num_loads;
            let output = self.run(&name, &job);
            let has_loaded = self.executors[job.family].residency().num_loads > loads;
            output
                .map(|output| Done { output, queue, compute: start.elapsed(), has_loaded })
                .map_err(ServeError::from)
        };
        // Nobody hears a failure to send: the client has gone in the meantime.
        drop(job.reply.send(result));
    }

    /// Runs a job in chunks of at most its largest batch.
    fn run(&mut self, name: &str, job: &Job) -> Result<Tensor, RuntimeError> {
        let executor = &mut self.executors[job.family];
        let family = executor.family().clone();
        let before = executor.residency();
        let mut times = ModuleTimes { name, family: &family, observer: &*self.observer };
        let mut outputs = Vec::new();
        for chunk in chunks(&job.input, job.max_batch) {
            let sides = SideInputs::of_input(chunk)?;
            outputs.push(executor.run(&job.path, &sides, &mut times)?);
        }
        if executor.residency() != before {
            self.report_residency(job.family);
        }
        Ok(concatenate(outputs))
    }

    fn report_residency(&self, family: usize) {
        let executor = &self.executors[family];
        self.observer.residency_changed(&executor.family().manifest.name, &executor.residency());
    }
}

/// What the thread does next.
enum Task {
    Load(usize, ModuleId),
    Answer(Job),
}

/// Passes module times on under the modules' names.
struct ModuleTimes<'a> {
    name: &'a str,
    family: &'a crate::arch::Family,
    observer: &'a dyn Observer,
}

impl ModuleObserver for ModuleTimes<'_> {
    fn ran(&mut self, module: ModuleId, time: Duration) {
        self.observer.module_ran(self.name, &self.family.graph.module(module).name, time);
    }
}

/// Splits `input` into chunks of at most `max_batch` texts or images, texts cut to the chunk's
/// longest.
fn chunks(input: &ModelInput, max_batch: usize) -> Vec<ModelInput> {
    let batch = input.batch();
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
