//! The inference threads: each runs one batch at a time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::Span;

use super::{
    crew::Crew,
    outputs::{Outputs, check, split},
    run::{Ran, Work, run_chunks},
    yielding::give_way,
};
use crate::{
    family::ModuleId,
    input::ModelInput,
    plan::Shape,
    runtime::Executor,
    serve::{
        admission::{
            batch::Batch,
            job::{Done, Job},
            queue::{Next, Queue, Receiver, queue},
        },
        error::ServeError,
        observe::{Observer, reported},
        planner::{Chosen, Planner, learned::Run},
        request::RoutedModule,
    },
};

/// The inference threads. When this is dropped they are outside ONNX Runtime and stay there, so
/// that the process may end: its libraries must not be torn down under a running session.
#[derive(Debug)]
pub struct InferenceThreads {
    gates: Vec<Arc<Mutex<bool>>>,
}

impl Drop for InferenceThreads {
    fn drop(&mut self) {
        for is_stopped in &self.gates {
            *is_stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }
}

/// Starts `num_workers` inference threads with a queue in which at most `limit` jobs wait. The
/// threads end when the returned queue and its clones are dropped.
pub(crate) fn start(
    num_workers: usize,
    limit: usize,
    observer: Arc<dyn Observer>,
) -> std::io::Result<(Queue, InferenceThreads)> {
    let (queue, receivers) = queue(limit, num_workers);
    let crew = Arc::new(Crew::new(observer));
    let mut threads = InferenceThreads { gates: Vec::new() };
    for (index, receiver) in receivers.into_iter().enumerate() {
        let is_stopped = Arc::new(Mutex::new(false));
        threads.gates.push(is_stopped.clone());
        let worker = Worker { crew: crew.clone(), receiver, is_stopped };
        let builder = thread::Builder::new().name(format!("inference-{index}"));
        builder.spawn(move || worker.run_until_closed())?;
    }
    Ok((queue, threads))
}

/// Results of a batch that ran.
struct Computed {
    /// Share of each job.
    shares: Vec<Share>,
    planner: Arc<Planner>,
    lesson: Lesson,
}

/// Share that a job has of its batch's results.
struct Share {
    outputs: Outputs,
    routed: Vec<RoutedModule>,
    /// Whether every value of the outputs is a finite number.
    is_finite: bool,
}

/// Times that a batch took.
struct Lesson {
    shape: Shape,
    times: Vec<(ModuleId, Duration)>,
    /// Time of the whole path; `None` if it says nothing about later batches.
    whole: Option<Duration>,
}

struct Worker {
    crew: Arc<Crew>,
    receiver: Receiver,
    /// Flag to stop the thread, whose lock is held while the thread is inside ONNX Runtime.
    is_stopped: Arc<Mutex<bool>>,
}

impl Worker {
    fn run_until_closed(self) {
        give_way();
        loop {
            let next = self.receiver.next(self.crew.patience());
            let is_stopped = self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner);
            if *is_stopped || matches!(next, Next::Closed) {
                return;
            }
            // A panic loses only this batch or task; its clients get the error that the thread is
            // gone.
            drop(catch_unwind(AssertUnwindSafe(|| self.perform(next))));
            // Batches and steps take turns.
            self.generate();
        }
    }

    fn perform(&self, next: Next) {
        match next {
            Next::Batch(batch) => self.answer(batch),
            Next::Task(task) => self.crew.perform(task),
            Next::Nothing => {
                let begun = Instant::now();
                self.crew.use_time(&|| self.receiver.was_quiet_since(begun));
            }
            Next::Closed => {}
        }
    }

    /// Runs a step of a generator that has one. For what it takes, the thread is busy.
    fn generate(&self) {
        if let Some(generator) = self.crew.next_generator() {
            let begun = self.receiver.begin(generator.step_time().into());
            generator.step(&*self.crew.observer);
            self.receiver.end(begun, &[]);
        }
    }

    /// Runs a batch without the jobs whose clients no longer wait.
    fn answer(&self, Batch { mut jobs, chosen }: Batch) {
        let executor = jobs.first().and_then(|job| self.crew.executor(job.family));
        let Some(executor) = executor else {
            // A family is removed after its last job, so no client waits for these jobs.
            return;
        };
        jobs.retain(|job| !job.reply.is_closed());
        jobs.iter_mut().for_each(|job| job.place = None);
        if jobs.is_empty() {
            return;
        }
        match chosen {
            Ok(chosen) => self.run_batch(&executor, jobs, &chosen),
            Err(error) => refuse(jobs, error),
        }
    }

    /// Runs jobs together. If that fails, runs each of them alone, so that only the jobs at fault
    /// fail.
    fn run_batch(&self, executor: &Executor, mut jobs: Vec<Job>, chosen: &Chosen) {
        let start = Instant::now();
        let begun = self.receiver.begin(chosen.expected());
        let compute = AssertUnwindSafe(|| self.compute(executor, &mut jobs, chosen));
        let result = catch_unwind(compute).unwrap_or(Err(ServeError::Panicked));
        let is_alone = self.receiver.end(begun, &jobs);
        match result {
            Ok(Computed { shares, planner, lesson }) => {
                let is_shared = jobs.len() > 1;
                let failed = reply(jobs, shares, chosen, start);
                // A panic loses only what would be learned; some jobs have yet to be answered.
                let learn = AssertUnwindSafe(|| self.learn(&planner, &lesson, is_alone));
                drop(catch_unwind(learn));
                match is_shared {
                    true => self.run_alone(executor, failed),
                    false => {
                        refuse(failed, ServeError::NotFinite { plan: chosen.summary.plan.clone() })
                    }
                }
            }
            Err(_) if jobs.len() > 1 => self.run_alone(executor, jobs),
            Err(error) => refuse(jobs, error),
        }
    }

    /// Learns from the times of a batch.
    fn learn(&self, planner: &Planner, lesson: &Lesson, is_alone: bool) {
        let Lesson { shape, times, whole } = lesson;
        if let Some(whole) = *whole {
            let ended = Instant::now();
            let run = Run { shape: *shape, times, whole, is_alone, ended };
            planner.learn(&run, &*self.crew.observer);
        }
    }

    /// Runs each of `jobs` again alone, since they may have suffered from one another.
    fn run_alone(&self, executor: &Executor, jobs: Vec<Job>) {
        for job in jobs {
            let chosen = job.chosen.clone().without_elapsed();
            self.run_batch(executor, vec![job], &chosen);
        }
    }

    /// Runs the plan `chosen` on the inputs of all jobs.
    fn compute(
        &self,
        executor: &Executor,
        jobs: &mut [Job],
        chosen: &Chosen,
    ) -> Result<Computed, ServeError> {
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
        let input = input.ok_or(ServeError::Broken { what: "a job has no input" })?;
        let planner = jobs[0].planner.clone();
        let shape = input.shape();
        let max_batch = planner.loaded.profile.max_batch();
        let work = Work { plan: &chosen.plan, input, max_batch };
        let start = Instant::now();
        let (mut ran, has_loaded) = computing[0].in_scope(|| self.run(executor, work))?;
        // A batch that runs in chunks has no shape to learn from.
        let is_lesson = !has_loaded && shape.batch <= max_batch;
        let whole = is_lesson.then(|| start.elapsed());
        let lesson = Lesson { shape, times: std::mem::take(&mut ran.times), whole };
        let name = &executor.family().manifest.name;
        let factor = planner.correction.factor(Instant::now());
        self.crew.observer.batch_ran(name, shape.batch, factor);
        Ok(Computed { shares: share(ran, jobs), planner, lesson })
    }

    /// Runs a plan in chunks of at most the largest batch. Returns its results and whether modules
    /// were loaded.
    fn run(&self, executor: &Executor, work: Work<'_>) -> Result<(Ran, bool), ServeError> {
        let name = &executor.family().manifest.name;
        let before = executor.residency();
        let observer = &*self.crew.observer;
        let ran = run_chunks(executor, name, work, observer)
            .map_err(|error| reported(observer, name, error))?;
        let has_loaded = executor.residency() != before;
        if has_loaded {
            self.crew.report_residency();
        }
        Ok((ran, has_loaded))
    }
}

/// Splits the results of a batch among its jobs.
fn share(ran: Ran, jobs: &[Job]) -> Vec<Share> {
    let shapes: Vec<Shape> = jobs.iter().map(|job| job.shape).collect();
    let mut first_row = 0;
    let own = |(outputs, shape): (Outputs, &Shape)| {
        let mut share =
            Share { outputs, routed: ran.routed.of_rows(first_row, shape.batch), is_finite: true };
        share.is_finite = check(&mut share.outputs, first_row, ran.places.as_ref());
        first_row += shape.batch;
        share
    };
    split(ran.outputs, &shapes).into_iter().zip(&shapes).map(own).collect()
}

/// Answers every job of a batch that began at `start`, except those whose outputs are not finite.
/// Returns those jobs.
fn reply(jobs: Vec<Job>, shares: Vec<Share>, chosen: &Chosen, start: Instant) -> Vec<Job> {
    let compute = start.elapsed();
    let mut failed = Vec::new();
    for (job, Share { outputs, routed, is_finite }) in jobs.into_iter().zip(shares) {
        if !is_finite {
            failed.push(job);
            continue;
        }
        let mut chosen = chosen.clone();
        let (before, queue) = (job.before, start - job.queued);
        chosen.summary.predicted_latency +=
            before + job.planner.correction.answering(Instant::now());
        let done = Done { outputs, routed, before, queue, compute, chosen };
        // A span ends when its last holder drops it; the request's span must not wait for this
        // thread.
        drop(job.request);
        // Sending fails only if the client has gone in the meantime.
        drop(job.reply.send(Ok(done)));
    }
    failed
}

/// Refuses the only job of `jobs`, which failed or has no time left. A batch with an error has at
/// most one job.
fn refuse(jobs: Vec<Job>, error: ServeError) {
    if let Some(job) = jobs.into_iter().next() {
        drop(job.request);
        drop(job.reply.send(Err(error)));
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
