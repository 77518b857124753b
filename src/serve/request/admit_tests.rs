//! Tests of admission and of the choice of a plan for the time that is left.

use super::*;
use crate::{
    offer::ModuleProfile,
    serve::{
        admission::{
            queue::{Next, Patience},
            waiting::Need,
        },
        planner::learned::Run,
        request::DEFAULT_PRIORITY,
        support_tests::{Endings, MAX_WAIT, images, request, service},
    },
};

const ONE: Shape = Shape::new(1, 1);
const MICROSECOND: Duration = Duration::from_micros(1);

fn within(latency: Duration) -> Budget {
    Budget { latency: Some(latency), ..Budget::default() }
}

fn asked(budget: &Budget, arrival: Instant) -> Asked {
    Asked { budget: budget.clone(), priority: DEFAULT_PRIORITY, arrival }
}

/// Returns the inputs of a request for `rows` images.
fn inputs(rows: usize) -> Inputs {
    Inputs::Ready(images(&vec![0.0; rows]))
}

/// Admits a request for 64 images without a budget, which comes before all others.
fn admit_first(service: &FamilyService) -> Reservation {
    let first = Asked { priority: 1, ..asked(&Budget::default(), Instant::now()) };
    service.admit(&inputs(64), &first).expect("nothing else waits")
}

/// Reserves a place in the queue, as for a request that is being prepared.
fn place(service: &FamilyService, now: Instant) -> Reservation {
    let rank = Rank { priority: 1, deadline: now + MAX_WAIT };
    let (need, has_budget, is_free) = (Need::default(), false, true);
    service.queue.admit(Candidate { rank, need, has_budget, is_free }).expect("room")
}

/// Returns the run time of the fastest plan for one image, with its margin.
fn fastest(service: &FamilyService, now: Instant) -> Duration {
    let question = Question { shape: ONE, budget: &Budget::default(), now };
    service.planner.need(&question).expect("a plan").alone
}

#[tokio::test]
async fn a_request_behind_others_that_is_late_is_told_when_to_retry() {
    let (service, _receiver, _) = service();
    let first = admit_first(&service);
    let question =
        Question { shape: Shape::new(64, 1), budget: &Budget::default(), now: Instant::now() };
    let before = service.planner.need(&question).expect("a plan").least;
    let budget = within(before);
    assert!(service.planner.is_feasible(&Question { shape: ONE, budget: &budget, ..question }));
    let error = service.admit(&inputs(1), &asked(&budget, Instant::now())).expect_err("late");
    let ServeError::Late { retry_after } = error else { panic!("{error}") };
    assert_eq!(retry_after, before, "the time of what waits");
    drop(first);
    let idle = service.admit(&inputs(1), &asked(&budget, Instant::now()));
    assert!(idle.is_ok(), "the first request has given its place up");
}

#[tokio::test]
async fn a_request_that_no_plan_can_meet_is_infeasible_also_behind_others() {
    let (service, _receiver, _) = service();
    let _first = admit_first(&service);
    let budget = within(MICROSECOND);
    let error = service.admit(&inputs(1), &asked(&budget, Instant::now())).expect_err("no plan");
    assert_eq!(error.code(), ErrorCode::BudgetInfeasible, "a retry would not help: {error}");
}

#[tokio::test]
async fn an_idle_server_admits_every_budget_and_lets_the_plans_decide() {
    let (service, _receiver, _) = service();
    let admitted = service.admit(&inputs(1), &asked(&within(MICROSECOND), Instant::now()));
    assert!(admitted.is_ok(), "{admitted:?}");
}

#[tokio::test]
async fn a_full_queue_and_ended_threads_refuse_every_request() {
    let (service, receiver, _) = service();
    let admit = || service.admit(&inputs(1), &asked(&Budget::default(), Instant::now()));
    let places: Vec<Reservation> = (0..4).map(|_| admit().expect("room for four")).collect();
    let error = admit().expect_err("four wait");
    assert!(matches!(error, ServeError::QueueFull { limit: 4, .. }), "{error}");
    drop(places);
    drop(receiver);
    assert!(matches!(admit(), Err(ServeError::WorkerGone)));
}

#[test]
fn a_plan_is_chosen_for_the_time_that_is_left() {
    let (service, _receiver, _) = service();
    let now = Instant::now();
    let place = place(&service, now);
    let second = Duration::from_secs(1);
    let choose = |waited: Duration| {
        let question = Question { shape: ONE, budget: &within(second), now };
        service.plan_in_time(&question, now - waited, &place).expect("time is left")
    };
    let early = choose(Duration::ZERO);
    let turns = service.turns(now, second);
    assert_eq!(early.summary.predicted_latency, early.predicted + turns);
    let left = 2 * fastest(&service, now);
    let late = choose(second - left - turns);
    assert!(service.planner.with_margin(late.conservative) <= left);
    assert!(late.summary.quality.value < early.summary.quality.value);
}

#[test]
fn a_request_whose_time_passes_while_it_is_prepared_is_told_as_if_it_were_ready() {
    let (service, _receiver, _) = service();
    let now = Instant::now();
    let mut place = place(&service, now);
    let second = Duration::from_secs(1);
    let passed = asked(&within(second), now - second);
    place.promise.is_alone = false;
    let error = service.too_late(ONE, &passed, &place);
    assert!(matches!(error, ServeError::Late { .. }), "a retry may help: {error}");
    place.promise.is_alone = true;
    let error = service.too_late(ONE, &passed, &place);
    let is_told = matches!(error, ServeError::DeadlineExceeded { waited } if waited >= second);
    assert!(is_told, "{error}");
}

#[test]
fn an_idle_server_tries_the_fastest_plan_until_the_budget_has_passed() {
    let (service, _receiver, _) = service();
    let now = Instant::now();
    let mut place = place(&service, now);
    let budget = within(Duration::from_secs(1));
    let question = Question { shape: ONE, budget: &budget, now };
    let ask = |waited: Duration, place: &Reservation| {
        service.plan_in_time(&question, now - waited, place)
    };
    let last_moment = Duration::from_secs(1) - MICROSECOND;
    let tried = ask(last_moment, &place).expect("an idle thread tries it");
    let expected = Question { budget: &budget.fastest(), ..question };
    let expected = service.planner.plan_for(&expected).expect("a plan");
    assert_eq!(tried.summary.plan, expected.summary.plan);
    assert!(service.planner.with_margin(tried.conservative) > MICROSECOND, "it will be late");

    place.promise.is_alone = true;
    let passed = Duration::from_secs(1);
    let error = ask(passed, &place).expect_err("the budget has passed");
    assert!(matches!(error, ServeError::DeadlineExceeded { waited } if waited == passed));
    place.promise.is_alone = false;
    let error = ask(passed, &place).expect_err("others were there just now");
    assert!(matches!(error, ServeError::Late { .. }), "{error}");
}

#[test]
fn beside_others_no_plan_is_tried_that_is_not_in_time() {
    let (service, _receiver, _) = service();
    let now = Instant::now();
    let own = place(&service, now);
    let _other = place(&service, now);
    let budget = within(Duration::from_secs(1));
    let question = Question { shape: ONE, budget: &budget, now };
    let last_moment = now + MICROSECOND - Duration::from_secs(1);
    let error = service.plan_in_time(&question, last_moment, &own).expect_err("not in time");
    assert!(matches!(error, ServeError::Late { .. }), "{error}");
    // No plan has this quality, with whatever time.
    let best = Budget { min_quality: Some(1.0), ..budget.clone() };
    let error = service.plan_in_time(&Question { budget: &best, ..question }, now, &own);
    let error = error.expect_err("no such plan");
    assert_eq!(error.code(), ErrorCode::BudgetInfeasible, "{error}");
}

#[test]
fn only_an_idle_server_doubts_latencies_that_it_learned_long_ago() {
    let (service, _receiver, _) = service();
    let now = Instant::now();
    let own = place(&service, now);
    let budget = within(2 * fastest(&service, now));
    let planner = &service.planner;
    let chosen = planner.plan_for(&Question { shape: ONE, budget: &budget, now }).expect("a plan");
    let seconds = |module: &ModuleProfile| 4.0 * module.latency_seconds.at(1, 1);
    let time =
        |id| Some((id, Duration::from_secs_f64(seconds(planner.loaded.profile.module(id)?))));
    let times: Vec<_> = chosen.plan.path.iter().filter_map(|id| time(*id)).collect();
    let whole = times.iter().map(|(_, time)| *time).sum();
    for _ in 0..40 {
        let run = Run { shape: ONE, times: &times, whole, is_alone: true, ended: now };
        planner.learn(&run, &Endings::default());
    }
    let later = now + Duration::from_secs(60);
    let ask =
        |now, own| service.plan_in_time(&Question { shape: ONE, budget: &budget, now }, now, own);
    let fresh = ask(now, &own).expect_err("the machine was measured just now");
    assert_eq!(fresh.code(), ErrorCode::BudgetInfeasible, "{fresh}");
    assert!(ask(later, &own).is_ok(), "the machine may have become faster");
    let _other = place(&service, now);
    let busy = ask(later, &own).expect_err("another request would wait for the measurement");
    assert_eq!(busy.code(), ErrorCode::BudgetInfeasible, "{busy}");
}

#[test]
fn a_deadline_leaves_time_for_the_answer_and_is_at_most_the_longest_wait() {
    let (service, _receiver, _) = service();
    let arrival = Instant::now();
    let queued = arrival + Duration::from_millis(5);
    let rank = |latency| service.rank(&asked(&within(latency), arrival), queued);
    let second = Duration::from_secs(1);
    let turns = service.turns(queued, second);
    assert!(turns > Duration::ZERO);
    let in_time = rank(second).expect("it has a budget");
    assert_eq!(in_time.deadline, arrival + second - turns);
    assert_eq!(in_time.priority, DEFAULT_PRIORITY);
    let calm = rank(2 * MAX_WAIT).expect("it has a budget");
    assert_eq!(calm.deadline, queued + MAX_WAIT);
    assert!(service.rank(&asked(&Budget::default(), arrival), queued).is_none());
}

#[test]
fn at_least_half_of_a_budget_remains_however_slow_the_async_threads_are() {
    let (service, _receiver, _) = service();
    let now = Instant::now();
    let hour = Duration::from_secs(3_600);
    let calm = service.turns(now, hour);
    assert_eq!(service.turns(now, MICROSECOND), MICROSECOND / 2);
    for _ in 0..1_000 {
        service.planner.correction.learn_answering(now, Duration::from_secs(9));
    }
    let slow = service.turns(now, hour);
    assert!(slow > 100 * calm && slow < Duration::from_secs(1), "bounded: {slow:?}");
    let budget = Duration::from_millis(20);
    assert_eq!(service.turns(now, budget), budget / 2);
}

#[tokio::test]
async fn a_queued_job_knows_what_its_request_asked_for() {
    let (service, receiver, _) = service();
    let arrival = Instant::now();
    let budget = within(Duration::from_secs(9));
    let given = images(&[0.5, 1.0]);
    let (place, chosen) = (place(&service, arrival), {
        let question = Question { shape: given.shape(), budget: &budget, now: arrival };
        service.planner.plan_for(&question).expect("a plan")
    });
    let least = Duration::from_millis(3);
    let prepared = Prepared { input: given.clone(), chosen, least, preprocess: Duration::ZERO };
    let asked = Asked { priority: 7, ..asked(&budget, arrival) };
    let _reply = service.queue(prepared, asked, place).expect("queued");
    let Next::Batch(batch) = receiver.next(Patience::None) else { panic!("a job waits") };
    let job = &batch.jobs[0];
    assert_eq!((job.input.as_ref(), job.shape, job.least), (Some(&given), Shape::new(2, 1), least));
    assert_eq!((job.rank.priority, job.budget.as_ref()), (7, Some(&budget)));
    assert_eq!(job.queued - job.before, arrival, "time before the queue counts");
}

#[tokio::test]
async fn a_job_without_a_latency_budget_keeps_its_plan() {
    let (service, receiver, _) = service();
    let budget = Budget { min_quality: Some(0.9), ..Budget::default() };
    let queued = service.enqueue(request(0.5, budget)).await.expect("queued");
    assert_eq!((queued.shape, queued.total_tokens), (ONE, 1));
    let Next::Batch(batch) = receiver.next(Patience::None) else { panic!("a job waits") };
    let job = &batch.jobs[0];
    assert!(job.budget.is_none(), "no choice depends on time");
    assert_eq!(job.rank.deadline, job.queued + MAX_WAIT);
    assert_eq!(batch.chosen.expect("a plan").plan, job.chosen.plan);
}
