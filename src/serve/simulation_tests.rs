//! Traffic on simulated threads: the real scheduler and planner, a simulated clock, and a runner
//! that takes as long as the profile says, times the machine's speed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::{ProptestConfig, Strategy, TestCaseError, any, prop_assert_eq, proptest};

use super::{
    ErrorCode, PlanSummary,
    admission::{
        batch,
        job::Job,
        scheduler::{Begun, Candidate, Capacity, Scheduler},
        waiting::Rank,
    },
    planner::{Chosen, Planner, Question, learned::Run},
    support_tests::{self, Endings, MAX_WAIT, Reply, job, planner, spread_planner},
};
use crate::{
    family::ModuleId,
    plan::{
        Budget, Shape,
        oracle::{Asked, Choice, Costs, bound},
    },
};

/// Time from the queueing of a job to the start of an idle thread.
const WAKING: Duration = Duration::from_micros(20);

/// Numbers between 0 and 1 (a linear congruential generator).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        f64::from(u32::try_from(self.0 >> 32).expect("32 bits")) / f64::from(u32::MAX)
    }

    /// Returns the time to the next of `rate` events a second (a Poisson process).
    fn gap(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.next() * 0.999_999).ln() / rate)
    }
}

/// Batch on a simulated thread.
struct Running {
    ends: Instant,
    jobs: Vec<Job>,
    chosen: Chosen,
    begun: Begun,
    times: Vec<(ModuleId, Duration)>,
}

/// Batch that ran.
struct Ran {
    shape: Shape,
    times: Vec<(ModuleId, Duration)>,
    ended: Instant,
}

/// Numbers of requests by their outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    arrived: usize,
    in_time: usize,
    late: usize,
    /// Requests that were refused before anything was done for them.
    refused: usize,
    /// Requests that were admitted and refused at their turn.
    expired: usize,
}

/// Server on a simulated clock.
struct Simulation {
    planner: Arc<Planner>,
    scheduler: Scheduler<Job>,
    threads: Vec<Option<Running>>,
    /// Time that a batch takes, as a multiple of what was profiled.
    slowness: f64,
    /// Largest deviation of a batch's time, as a fraction of it.
    noise: f64,
    random: Random,
    tally: Tally,
    /// Sum of the answers' qualities.
    quality: f64,
    arrivals: Vec<Instant>,
    /// Plan of all requests; `None` where the server chooses.
    plan: Option<String>,
    /// Plan of the last batch.
    last: String,
    /// Receivers of answers; a job whose receiver is gone is abandoned.
    replies: BTreeMap<Instant, Reply>,
    /// Batches that ran without neighbours.
    alone: Vec<Ran>,
}

impl Simulation {
    fn new(now: Instant, planner: Arc<Planner>, num_threads: usize, seed: u64) -> Self {
        Self {
            planner,
            scheduler: Scheduler::new(now, 256, num_threads),
            threads: (0..num_threads).map(|_| None).collect(),
            slowness: 1.0,
            noise: 0.05,
            random: Random(seed),
            tally: Tally::default(),
            quality: 0.0,
            arrivals: Vec::new(),
            plan: None,
            last: String::new(),
            replies: BTreeMap::new(),
            alone: Vec::new(),
        }
    }

    /// Lets a request for one image arrive at `now`. Returns whether it was admitted.
    fn arrive(&mut self, now: Instant, latency: Option<Duration>) -> bool {
        self.arrive_with(now, latency, 1)
    }

    /// Lets a request for `rows` images arrive at `now`. Returns whether it was admitted.
    fn arrive_with(&mut self, now: Instant, latency: Option<Duration>, rows: usize) -> bool {
        self.tally.arrived += 1;
        self.arrivals.push(now);
        let shape = Shape::new(rows, 1);
        let budget = Budget { latency, plan: self.plan.clone(), ..Budget::default() };
        let question = Question { shape, budget: &budget, now };
        let need = self.planner.need(&question).unwrap_or_default();
        let rank = Rank { priority: 1, deadline: now + latency.unwrap_or(MAX_WAIT) };
        let candidate = Candidate { rank, need, has_budget: latency.is_some(), is_free: true };
        let Ok((reserved, promise)) = self.scheduler.admit(now, candidate) else {
            self.tally.refused += 1;
            return false;
        };
        let in_time = self.planner.plan_in_time(&question, Duration::ZERO);
        let (job, reply) =
            job(&self.planner, now, &support_tests::Asked { rows, tokens: 1, budget });
        let chosen = in_time.unwrap_or(job.chosen);
        self.replies.insert(now, reply);
        self.scheduler.push(now, reserved, Job { chosen, promise, ..job });
        // A thread wakes up a moment later, so that the request does not disturb its own batch.
        self.dispatch(now + WAKING);
        true
    }

    /// Gives work to the idle threads.
    fn dispatch(&mut self, now: Instant) {
        while let Some(thread) = self.threads.iter().position(Option::is_none) {
            let num_free = self.threads.iter().filter(|running| running.is_none()).count();
            let Some(plan) = self.scheduler.step(now, &Capacity { num_free }) else { return };
            let (size, chosen) = batch::choose(&plan);
            let is_late = chosen.as_ref().is_err_and(|e| e.code() == ErrorCode::Overloaded);
            let jobs = self.scheduler.commit(plan, size, is_late);
            let Ok(chosen) = chosen else {
                self.tally.expired += jobs.len();
                jobs.iter().for_each(|job| drop(self.replies.remove(&job.queued)));
                continue;
            };
            let begun = self.scheduler.begin(now, thread, chosen.expected());
            let deviation = self.noise * (2.0 * self.random.next() - 1.0);
            let speed = self.slowness * (1.0 + deviation);
            let rows = jobs.iter().map(|job| job.shape.batch).sum();
            let time = |id: &ModuleId| {
                let module = self.planner.loaded.profile.module(*id)?;
                let seconds = module.latency_seconds.at(rows, 1) * speed;
                Some((*id, Duration::from_secs_f64(seconds)))
            };
            let times: Vec<_> = chosen.plan.path.iter().filter_map(time).collect();
            let ends = now + times.iter().map(|(_, time)| *time).sum::<Duration>();
            self.last.clone_from(&chosen.summary.plan);
            self.quality += jobs.iter().map(|_| chosen.summary.quality.value).sum::<f64>();
            self.threads[thread] = Some(Running { ends, jobs, chosen, begun, times });
        }
    }

    /// Ends the batches that are done before `until`, in their order.
    fn run_until(&mut self, until: Instant) {
        loop {
            let busy = self.threads.iter().enumerate();
            let busy = busy.filter_map(|(thread, running)| Some((running.as_ref()?.ends, thread)));
            let Some((now, thread)) = busy.min().filter(|(ends, _)| *ends <= until) else {
                return;
            };
            let Some(Running { jobs, chosen, begun, times, .. }) = self.threads[thread].take()
            else {
                return;
            };
            let is_alone = self.scheduler.end(now, thread, begun, &jobs);
            let shape = Shape::new(jobs.iter().map(|job| job.shape.batch).sum(), 1);
            let ran = Ran { shape, times, ended: now };
            self.learn(&ran, is_alone);
            if is_alone {
                self.alone.push(ran);
            }
            for job in &jobs {
                self.replies.remove(&job.queued);
                match now <= job.rank.deadline {
                    true => self.tally.in_time += 1,
                    false => self.tally.late += 1,
                }
            }
            assert!(!chosen.plan.path.is_empty());
            self.dispatch(now);
        }
    }

    /// Learns from a batch that ran.
    fn learn(&self, Ran { shape, times, ended }: &Ran, is_alone: bool) {
        let whole = times.iter().map(|(_, time)| *time).sum();
        let run = Run { shape: *shape, times, whole, is_alone, ended: *ended };
        self.planner.learn(&run, &Endings::default());
    }
}

/// Returns the best plan of an idle server.
fn best(planner: &Planner, now: Instant) -> String {
    let question = Question { shape: Shape::new(1, 1), budget: &Budget::default(), now };
    planner.plan_for(&question).expect("a plan").summary.plan
}

/// Lets requests arrive for `length`, with calm, busy and overloaded quarters of minutes.
fn traffic(simulation: &mut Simulation, start: Instant, length: Duration, rate: f64) -> Instant {
    let mut now = start;
    while now < start + length {
        let quarter = (now - start).as_secs() / 15 % 4;
        let factor = [0.2, 0.6, 2.4, 0.8][usize::try_from(quarter).expect("below 4")];
        now += simulation.random.gap(rate * factor);
        simulation.run_until(now);
        let choice = simulation.random.next();
        let latency = [15, 40, 120][if choice < 0.3 { 0 } else { usize::from(choice < 0.8) + 1 }];
        simulation.arrive(now, Some(Duration::from_millis(latency)));
    }
    now
}

#[test]
fn an_hour_of_traffic_loses_no_request_and_keeps_its_deadlines() {
    let (planner, start) = (planner(), Instant::now());
    let hour = Duration::from_secs(3_600);
    let mut simulation = Simulation::new(start, planner.clone(), 1, 7);
    let end = traffic(&mut simulation, start, hour, 28.0);
    simulation.run_until(end + MAX_WAIT);
    let tally = simulation.tally;
    assert!(tally.arrived > 90_000, "{tally:?}");
    let ended = tally.in_time + tally.late + tally.refused + tally.expired;
    assert_eq!(tally.arrived, ended, "no request is lost: {tally:?}");
    assert!(simulation.replies.is_empty() && simulation.scheduler.len() == 0);
    let admitted = tally.arrived - tally.refused;
    assert!(tally.late + tally.expired <= admitted / 50, "{tally:?}");
    assert!(tally.in_time * 10 >= tally.arrived * 9, "worse plans, not refusals: {tally:?}");
}

/// Returns the number of images a second that the best plan answers in batches of 16.
fn capacity(planner: &Planner, now: Instant) -> f64 {
    let question = Question { shape: Shape::new(16, 1), budget: &Budget::default(), now };
    16.0 / planner.plan_for(&question).expect("a plan").predicted.as_secs_f64()
}

/// Lets requests arrive for 16 seconds, half a second of every four at four times the mean `rate`.
fn bursts(simulation: &mut Simulation, start: Instant, rate: f64, latency: Duration) {
    let mut now = start;
    while now < start + Duration::from_secs(16) {
        let within = (now - start).as_millis() % 4_000;
        let factor = if within < 500 { 4.0 } else { 4.0 / 7.0 };
        now += simulation.random.gap(rate * factor);
        simulation.run_until(now);
        simulation.arrive(now, Some(latency));
    }
    simulation.run_until(now + MAX_WAIT);
}

#[test]
fn bursts_get_worse_answers_not_refusals() {
    for (budget, most_refused) in [(100, 0.0), (20, 0.02)] {
        let (planner, start) = (planner(), Instant::now());
        // The cheapest plan keeps pace with the bursts, and the best one with a quarter of them.
        let rate = capacity(&planner, start);
        let mut simulation = Simulation::new(start, planner, 1, 7);
        bursts(&mut simulation, start, rate, Duration::from_millis(budget));
        let Tally { arrived, refused, late, expired, .. } = simulation.tally;
        let [arrived, refused] =
            [arrived, refused].map(|count| f64::from(u32::try_from(count).expect("few")));
        assert!(refused <= most_refused * arrived, "{budget} ms: {refused} of {arrived}");
        assert!((late, expired) == (0, 0), "{budget} ms: {late} late, {expired} expired");
        let quality = simulation.quality / (arrived - refused);
        assert!(quality > 0.91, "{budget} ms: {quality}");
    }
}

#[test]
fn most_of_what_a_scheduler_that_knows_the_bursts_gains_is_gained() {
    let (planner, start) = (spread_planner(), Instant::now());
    let (rate, budget) = (capacity(&planner, start), Duration::from_millis(100));
    let front = |rows| planner.front(Shape::new(rows, 1), start);
    let choice = |plan: &PlanSummary| {
        let PlanSummary { predicted_latency: time, quality, .. } = plan;
        Choice { time: *time, quality: quality.value }
    };
    let rows = (1..=16).map(|rows| front(rows).iter().map(choice).collect());
    let costs = Costs { tokens: vec![1], choices: vec![rows.collect()] };
    // Returns arrivals, the fraction that is in time, and the mean quality of answers.
    let run = |plan: Option<String>| {
        let mut simulation = Simulation::new(start, planner.clone(), 1, 7);
        simulation.plan = plan;
        bursts(&mut simulation, start, rate, budget);
        let Tally { arrived, in_time, late, .. } = simulation.tally;
        let [arrived, in_time, late] =
            [arrived, in_time, late].map(|count| f64::from(u32::try_from(count).expect("few")));
        let quality = simulation.quality / (in_time + late);
        (simulation.arrivals, in_time / arrived, quality)
    };
    let (arrivals, attainment, quality) = run(None);
    assert!(attainment > 0.999, "{attainment}");
    let asked: Vec<Asked> =
        arrivals.iter().map(|at| Asked { offset: *at - start, tokens: 1 }).collect();
    let oracle = bound(&asked, budget, &costs);
    let fixed = front(1).into_iter().map(|plan| run(Some(plan.plan)));
    let deployable = fixed.filter(|(_, attainment, _)| *attainment >= 0.99);
    let best = deployable.map(|(_, _, quality)| quality).fold(0.0, f64::max);
    let share = (quality - best) / (oracle.mean_quality - best);
    assert!(oracle.mean_quality - best > 0.03, "{oracle:?} leads the best fixed plan's {best}");
    assert!(share > 0.75, "{quality} between {best} and {oracle:?}");
}

#[test]
fn a_machine_that_becomes_slower_is_learned_and_forgotten() {
    let (planner, start) = (planner(), Instant::now());
    let minute = Duration::from_secs(60);
    let mut simulation = Simulation::new(start, planner.clone(), 2, 3);
    let idle = best(&planner, start);
    let now = traffic(&mut simulation, start, minute, 40.0);
    simulation.slowness = 3.0;
    let before = simulation.tally;
    let now = traffic(&mut simulation, now, minute, 20.0);
    let after = simulation.tally;
    let missed = after.late + after.expired - before.late - before.expired;
    let arrived = after.arrived - before.arrived;
    assert!(missed <= arrived / 20, "{missed} of {arrived} are late: {after:?}");
    simulation.slowness = 1.0;
    let quiet = now + minute;
    simulation.run_until(quiet);
    // Single requests on an idle server get the best plan, as if there had been no load.
    for second in 0..20 {
        let now = quiet + Duration::from_secs(second);
        simulation.run_until(now);
        assert!(simulation.arrive(now, Some(Duration::from_secs(1))), "second {second}");
        assert_eq!(simulation.last, idle, "second {second}");
    }
}

/// Load on a server, from a calm one to many times its capacity.
#[derive(Debug, Clone)]
struct Load {
    seed: u64,
    num_threads: usize,
    /// Requests a second.
    rate: f64,
    /// Shortest latency budget in milliseconds; others are up to eight times as long.
    shortest: f64,
    most_rows: f64,
}

fn load() -> impl Strategy<Value = Load> {
    let numbers = (any::<u64>(), 1..3_usize, 5.0..800.0, 1.0..60.0, 1.0..8.0);
    numbers.prop_map(|(seed, num_threads, rate, shortest, most_rows)| Load {
        seed,
        num_threads,
        rate,
        shortest,
        most_rows,
    })
}

/// Sends `load` for `length`.
fn send(simulation: &mut Simulation, load: &Load, start: Instant, length: Duration) -> Instant {
    let mut now = start;
    while now < start + length {
        now += simulation.random.gap(load.rate);
        simulation.run_until(now);
        let latency = load.shortest * (1.0 + 7.0 * simulation.random.next());
        let rows = 1.0 + simulation.random.next() * (load.most_rows - 1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 8")]
        let rows = rows as usize;
        let latency =
            (simulation.random.next() < 0.9).then(|| Duration::from_secs_f64(latency / 1e3));
        simulation.arrive_with(now, latency, rows);
    }
    now
}

/// Asks an idle server with budgets of every size, one after the other; returns what it decides.
fn decisions(simulation: &mut Simulation, start: Instant) -> Vec<(bool, String)> {
    let budgets = [1, 2, 3, 5, 8, 12, 20, 40, 80, 200].map(|ms| Some(Duration::from_millis(ms)));
    let ask = |(index, latency): (u32, Option<Duration>)| {
        let now = start + index * Duration::from_secs(1);
        simulation.run_until(now);
        simulation.last.clear();
        (simulation.arrive(now, latency), simulation.last.clone())
    };
    (0..).zip(budgets.into_iter().chain([None])).map(ask).collect()
}

/// Returns the number of loads that are tried; `PROPTEST_CASES` asks for another.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|cases| cases.parse().ok()).unwrap_or(20)
}

/// Checks that a few seconds after `load`, a server decides like one that only saw the batches
/// without neighbours: they tell of the machine, and the others of the load.
fn forgets(load: &Load) -> Result<(), TestCaseError> {
    let start = Instant::now();
    let server = |seed| {
        let mut server = Simulation::new(start, planner(), load.num_threads, seed);
        server.noise = 0.0;
        server
    };
    let mut loaded = server(load.seed);
    let end = send(&mut loaded, load, start, Duration::from_secs(1));
    let quiet = end + MAX_WAIT;
    loaded.run_until(quiet);
    let tally = loaded.tally;
    let ended = tally.in_time + tally.late + tally.refused + tally.expired;
    prop_assert_eq!(tally.arrived, ended, "what is admitted ends: {:?}", tally);
    let rested = quiet + Duration::from_secs(3);
    let mut calm = server(1);
    loaded.alone.iter().for_each(|ran| calm.learn(ran, true));
    let expected = decisions(&mut calm, rested);
    prop_assert_eq!(decisions(&mut loaded, rested), expected, "{:?}", tally);
    Ok(())
}

/// Checks a load with so many batches without neighbours that the reserve has become smaller, and
/// one budget gets a better plan.
#[test]
fn what_ran_alone_under_load_is_not_forgotten() -> Result<(), TestCaseError> {
    forgets(&Load {
        seed: 2_817_874_144_583_524_797,
        num_threads: 1,
        rate: 124.327_227_441_788_41,
        shortest: 1.0,
        most_rows: 2.767_069_152_801_332_7,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_few_seconds_after_any_load_a_server_decides_as_if_there_had_been_none(load in load()) {
        forgets(&load)?;
    }
}
