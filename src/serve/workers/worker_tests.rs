//! Tests of an inference thread that runs real networks.

use super::*;
use crate::{
    input::Encoding,
    plan::{Budget, Plan},
    runtime::RuntimeError,
    serve::{
        ErrorCode,
        admission::{
            job::{FamilyKey, Task},
            scheduler::Candidate,
            waiting::{Need, Rank},
        },
        support_tests::{Asked, BEST, CHEAP, Reply, Runs, images, job, running},
    },
};

/// One inference thread, which is the test, and the family that it runs.
struct Bench {
    worker: Worker,
    queue: Queue,
    planner: Arc<Planner>,
    runs: Arc<Runs>,
}

impl Bench {
    fn new() -> Self {
        let (planner, executor) = running();
        let (queue, mut receivers) = queue(8, 1);
        let runs = Arc::new(Runs::default());
        let crew = Arc::new(Crew::new(runs.clone()));
        let (family, preload) = (FamilyKey(0), Vec::new());
        crew.perform(Task::Install { family, executor });
        crew.perform(Task::Ahead { family, preload, idle: None });
        let receiver = receivers.pop().expect("one thread");
        let worker = Worker { crew, receiver, is_stopped: Arc::default() };
        Self { worker, queue, planner, runs }
    }

    /// Returns a job that runs `plan` on images of these greys.
    fn job(&self, plan: &str, greys: &[f32]) -> (Job, Reply) {
        let budget = Budget { plan: Some(plan.into()), ..Budget::default() };
        let asked = Asked { rows: greys.len(), tokens: 1, budget };
        let (job, reply) = job(&self.planner, Instant::now(), &asked);
        (Job { input: Some(images(greys)), ..job }, reply)
    }

    /// Answers `jobs` by the plan of the first.
    fn answer(&self, jobs: Vec<Job>) {
        let chosen = Ok(jobs[0].chosen.clone());
        self.worker.perform(Next::Batch(Batch { jobs, chosen }));
    }

    /// Returns the scores of images of these greys, which run alone.
    fn scores(&self, greys: &[f32]) -> Vec<f32> {
        let (job, reply) = self.job(CHEAP, greys);
        self.answer(vec![job]);
        scores(reply)
    }
}

fn ended(mut reply: Reply) -> Result<Done, ServeError> {
    reply.try_recv().expect("the job has ended")
}

fn scores(reply: Reply) -> Vec<f32> {
    let done = ended(reply).expect("the job is answered");
    done.outputs[0].as_f32().expect("scores").to_vec()
}

fn are_near(left: &[f32], right: &[f32]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(a, b)| (a - b).abs() < 1e-3)
}

#[test]
fn each_job_of_a_batch_gets_the_rows_of_its_own_images() {
    let bench = Bench::new();
    let (one, two) = (bench.scores(&[0.2]), bench.scores(&[0.9, -0.5]));
    assert!(one.len() == 10 && two.len() == 20 && !are_near(&one, &two[..10]));
    let (first, first_reply) = bench.job(CHEAP, &[0.2]);
    let (second, second_reply) = bench.job(CHEAP, &[0.9, -0.5]);
    bench.answer(vec![first, second]);
    assert!(are_near(&scores(first_reply), &one));
    assert!(are_near(&scores(second_reply), &two));
    assert_eq!(bench.runs.rows(), [1, 2, 3]);
}

#[test]
fn an_answer_names_the_plan_that_ran_and_not_the_job_s_own() {
    let bench = Bench::new();
    let (fast, reply) = bench.job(CHEAP, &[0.2]);
    let (slow, _) = bench.job(BEST, &[0.2]);
    let batch = Batch { jobs: vec![fast], chosen: Ok(slow.chosen) };
    bench.worker.perform(Next::Batch(batch));
    let done = ended(reply).expect("answered");
    assert_eq!(done.chosen.summary.plan, BEST);
    assert!(done.chosen.summary.predicted_latency > done.chosen.predicted, "answering counts");
}

#[test]
fn only_the_job_fails_whose_outputs_are_not_numbers() {
    let bench = Bench::new();
    let expected = bench.scores(&[0.2]);
    let (first, first_reply) = bench.job(CHEAP, &[0.2]);
    let (broken, broken_reply) = bench.job(CHEAP, &[0.2, f32::NAN]);
    let (last, last_reply) = bench.job(CHEAP, &[0.2]);
    bench.answer(vec![first, broken, last]);
    assert!(are_near(&scores(first_reply), &expected) && are_near(&scores(last_reply), &expected));
    let error = ended(broken_reply).expect_err("it is not a number");
    assert!(matches!(&error, ServeError::NotFinite { plan } if plan == CHEAP), "{error}");
    assert_eq!(bench.runs.rows(), [1, 4, 2], "the job at fault is tried once more, alone");
}

#[test]
fn a_batch_that_fails_runs_again_job_by_job() {
    let tokens = |input_ids: Vec<i64>| {
        let attention_mask = input_ids.clone();
        ModelInput::Tokens(Encoding { batch: 1, tokens: 1, input_ids, attention_mask })
    };
    for (broken, expected) in [
        // The network needs images, so it refuses the input.
        (tokens(vec![1]), "inference failed"),
        // There are fewer ids than the encoding says, so reading them panics.
        (tokens(Vec::new()), "inference panicked"),
    ] {
        let bench = Bench::new();
        let (first, first_reply) = bench.job(CHEAP, &[0.2]);
        let (fault, fault_reply) = bench.job(CHEAP, &[0.2]);
        let (last, last_reply) = bench.job(CHEAP, &[0.9]);
        bench.answer(vec![first, Job { input: Some(broken), ..fault }, last]);
        assert!(ended(first_reply).is_ok() && ended(last_reply).is_ok(), "{expected}");
        let error = ended(fault_reply).expect_err("the job is at fault");
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.code(), ErrorCode::Internal);
        assert_eq!(bench.runs.rows(), [1, 1], "the two jobs that are in order ran alone");
    }
}

#[test]
fn a_batch_whose_outputs_cannot_be_split_runs_again_job_by_job() {
    let bench = Bench::new();
    let (first, first_reply) = bench.job(CHEAP, &[0.2]);
    let (odd, odd_reply) = bench.job(CHEAP, &[0.2]);
    // It says that it has more images than there are, so that splitting panics.
    let odd = Job { shape: Shape::new(3, 1), ..odd };
    bench.answer(vec![first, odd]);
    assert!(ended(first_reply).is_ok() && ended(odd_reply).is_ok(), "alone, nothing is split");
    assert_eq!(bench.runs.rows(), [2, 1, 1]);
}

#[test]
fn a_panic_while_a_batch_is_learned_from_fails_no_job() {
    let bench = Bench::new();
    bench.scores(&[0.2]);
    bench.runs.panic_when_learned();
    let (first, first_reply) = bench.job(CHEAP, &[0.2]);
    bench.answer(vec![first]);
    assert!(ended(first_reply).is_ok());
    let (broken, broken_reply) = bench.job(CHEAP, &[f32::NAN]);
    let (last, last_reply) = bench.job(CHEAP, &[0.2]);
    bench.runs.panic_when_learned();
    bench.answer(vec![broken, last]);
    assert!(ended(last_reply).is_ok());
    let error = ended(broken_reply).expect_err("it is not a number");
    assert!(matches!(error, ServeError::NotFinite { .. }), "{error}");
}

#[test]
fn jobs_run_again_on_their_own_plans() {
    let bench = Bench::new();
    let (mut first, first_reply) = bench.job(CHEAP, &[0.2]);
    let (second, second_reply) = bench.job(BEST, &[0.2]);
    let mut chosen = first.chosen.clone();
    chosen.plan = Plan::default();
    let hour = Duration::from_secs(3_600);
    first.chosen.summary.predicted_latency += hour;
    bench.worker.perform(Next::Batch(Batch { jobs: vec![first, second], chosen: Ok(chosen) }));
    let summary = |reply| ended(reply).expect("answered").chosen.summary;
    let (first, second) = (summary(first_reply), summary(second_reply));
    assert_eq!([first.plan, second.plan], [CHEAP, BEST]);
    assert!(first.predicted_latency < hour, "the time before the queue is added once");
}

#[test]
fn jobs_whose_clients_have_gone_do_not_run() {
    let bench = Bench::new();
    let (first, _) = bench.job(CHEAP, &[0.2]);
    let (second, reply) = bench.job(CHEAP, &[0.2, 0.3]);
    bench.answer(vec![first, second]);
    assert!(ended(reply).is_ok());
    assert_eq!(bench.runs.rows(), [2]);
    let (last, _) = bench.job(CHEAP, &[0.2]);
    bench.answer(vec![last]);
    assert_eq!(bench.runs.rows(), [2], "no one waits for the second batch");
}

#[test]
fn a_job_without_a_plan_gets_the_reason() {
    let bench = Bench::new();
    let (job, reply) = bench.job(CHEAP, &[0.2]);
    let late = Err(ServeError::Late { retry_after: Duration::ZERO });
    bench.worker.perform(Next::Batch(Batch { jobs: vec![job], chosen: late }));
    assert_eq!(ended(reply).expect_err("it is late").code(), ErrorCode::Overloaded);
    assert_eq!(bench.runs.rows(), [0; 0]);
}

#[test]
fn jobs_of_a_removed_family_are_dropped() {
    let bench = Bench::new();
    let (job, mut reply) = bench.job(CHEAP, &[0.2]);
    bench.worker.perform(Next::Task(Task::Remove(FamilyKey(0))));
    bench.answer(vec![job]);
    assert!(reply.try_recv().is_err(), "the sender is gone");
    assert_eq!(bench.runs.rows(), [0; 0]);
}

#[test]
fn latencies_are_learned_from_batches_alone_that_load_nothing() {
    let bench = Bench::new();
    let num_learned = |greys: &[f32]| {
        let before = bench.runs.num_learned();
        bench.scores(greys);
        bench.runs.num_learned() - before
    };
    assert_eq!(num_learned(&[0.2]), 0, "its modules were loaded meanwhile");
    assert_eq!(num_learned(&[0.2]), 4, "the stem, attention, feed-forward part and exit");
    assert_eq!(num_learned(&[0.2; 17]), 0, "16 images were the most that were profiled");
    let (need, rank) = (Need::default(), Rank { priority: 1, deadline: Instant::now() });
    let candidate = Candidate { rank, need, has_budget: false, is_free: true };
    let _place = bench.queue.admit(candidate).expect("room");
    assert_eq!(num_learned(&[0.2]), 0, "another request waits");
}

#[test]
fn clients_are_not_told_of_files_and_memory() {
    let (path, limit) = (
        std::path::PathBuf::from("/secret"),
        RuntimeError::MemoryLimit { bytes: 123, missing: 45, limit: 67 },
    );
    let changed = RuntimeError::Changed { module: "s.stem".into(), path };
    for (error, words) in [(changed, "its files were changed"), (limit, "the memory limit")] {
        let error = reported(&Runs::default(), "tiny", error);
        assert_eq!(error.code(), ErrorCode::Unavailable);
        let text = error.to_string();
        assert!(text.contains("`tiny`") && text.contains(words), "{text}");
        assert!(!text.contains("secret") && !text.contains("123"), "{text}");
    }
}

#[test]
fn a_router_that_fails_is_reported_by_its_module() {
    let runs = Runs::default();
    let error = reported(&runs, "tiny", RuntimeError::NoOutput);
    assert!(matches!(error, ServeError::Runtime(RuntimeError::NoOutput)));
    assert_eq!(runs.routers.lock().expect("no panic").len(), 0);
    let score = RuntimeError::Score { module: "a.block.0.mlp".into(), row: 3, way: 1 };
    let error = reported(&runs, "tiny", score);
    assert_eq!(error.code(), ErrorCode::Internal);
    assert_eq!(*runs.routers.lock().expect("no panic"), ["a.block.0.mlp"]);
}

#[test]
fn a_thread_ends_when_its_queue_is_dropped_and_all_work_is_done() {
    let Bench { worker, queue, runs, .. } = Bench::new();
    let crew = worker.crew.clone();
    queue.remove(FamilyKey(0));
    drop(queue);
    worker.run_until_closed();
    assert!(crew.executor(FamilyKey(0)).is_none(), "the task before the end was performed");
    assert_eq!(runs.rows(), [0; 0]);
}

#[test]
fn a_stopped_thread_begins_nothing() {
    let Bench { worker, queue, .. } = Bench::new();
    let (crew, gate) = (worker.crew.clone(), worker.is_stopped.clone());
    queue.remove(FamilyKey(0));
    drop(InferenceThreads { gates: vec![gate] });
    worker.run_until_closed();
    assert!(crew.executor(FamilyKey(0)).is_some(), "the task was not performed");
}
