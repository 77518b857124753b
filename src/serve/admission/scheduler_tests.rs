//! Tests of the scheduler on a simulated clock.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const ONE: Capacity = Capacity { num_free: 1 };

/// Item of a test. Items of one kind run together.
#[derive(Debug, Clone)]
struct Item {
    kind: char,
    rank: Rank,
    is_abandoned: bool,
    promise: Promise,
}

impl Work for Item {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn least(&self) -> Duration {
        SECOND
    }

    fn is_abandoned(&self) -> bool {
        self.is_abandoned
    }

    fn joins(&self, members: &[&Self]) -> bool {
        members[0].kind == self.kind
    }

    fn promise(&self) -> &Promise {
        &self.promise
    }

    fn has_budget(&self) -> bool {
        true
    }
}

fn candidate(now: Instant, left: Duration, alone: Duration) -> Candidate {
    let need = Need { least: alone, alone, batch_extra: Duration::ZERO };
    let rank = Rank { priority: 1, deadline: now + left };
    Candidate { rank, need, has_budget: true, is_free: true }
}

/// Admits an item that is due in `left`, and queues it at once.
fn queue(scheduler: &mut Scheduler<Item>, now: Instant, kind: char, left: Duration) {
    let candidate = candidate(now, left, SECOND);
    let (reserved, promise) = scheduler.admit(now, candidate).expect("room");
    let item = Item { kind, rank: candidate.rank, is_abandoned: false, promise };
    scheduler.push(now, reserved, item);
}

fn kinds(items: &[Item]) -> String {
    items.iter().map(|item| item.kind).collect()
}

#[test]
fn an_idle_scheduler_admits_what_is_predicted_to_be_late() {
    let now = Instant::now();
    let mut scheduler = Scheduler::<Item>::new(now, 8, 1);
    let late = candidate(now, SECOND, 5 * SECOND);
    let (reserved, promise) = scheduler.admit(now, late).expect("nothing else waits");
    assert!(matches!(scheduler.admit(now, late), Err(Refusal::Late { .. })));
    scheduler.give_up(now, reserved, &promise);
    scheduler.admit(now, late).expect("the place was given up");
}

#[test]
fn what_comes_beside_another_or_just_after_a_crowd_is_not_alone() {
    let now = Instant::now();
    let mut scheduler = Scheduler::<Item>::new(now, 8, 1);
    let admit = |scheduler: &mut Scheduler<Item>, now| {
        scheduler.admit(now, candidate(now, 9 * SECOND, SECOND)).expect("room")
    };
    let (reserved, promise) = admit(&mut scheduler, now);
    assert!(promise.is_alone);
    scheduler.give_up(now, reserved, &promise);
    let (first, promise) = admit(&mut scheduler, now);
    assert!(promise.is_alone, "the place before was given up");
    let (second, beside) = admit(&mut scheduler, now);
    assert!(!beside.is_alone, "the first still waits");
    scheduler.give_up(now, first, &promise);
    scheduler.give_up(now, second, &beside);
    let (third, promise) = admit(&mut scheduler, now);
    assert!(!promise.is_alone, "two came at once just now");
    scheduler.give_up(now, third, &promise);
    assert!(admit(&mut scheduler, now + 2 * LATELY).1.is_alone, "a while has passed");
}

#[test]
fn a_batch_is_alone_where_nothing_arrives_or_runs_beside_it() {
    let now = Instant::now();
    let at = |seconds| now + seconds * SECOND;
    let mut scheduler = Scheduler::<Item>::new(now, 8, 2);
    let begun = scheduler.begin(at(1), 0, SECOND.into());
    assert!(scheduler.end(at(2), 0, begun, &[]));
    let begun = scheduler.begin(at(3), 0, SECOND.into());
    let beside = scheduler.begin(at(4), 1, SECOND.into());
    assert!(!scheduler.end(at(5), 0, begun, &[]));
    assert!(!scheduler.end(at(6), 1, beside, &[]));
    assert!(!scheduler.was_quiet_since(at(3)) && scheduler.was_quiet_since(at(7)));
    let begun = scheduler.begin(at(8), 0, SECOND.into());
    scheduler.admit(at(9), candidate(at(9), 9 * SECOND, SECOND)).expect("room");
    assert!(!scheduler.end(at(10), 0, begun, &[]));
}

#[test]
fn what_does_not_run_in_a_step_waits_again_in_its_place() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(now, 8, 1);
    for (kind, left) in [('b', 50), ('a', 40), ('a', 60)] {
        queue(&mut scheduler, now, kind, left * SECOND);
    }
    let step = scheduler.step(now, &ONE).expect("some");
    assert_eq!((kinds(&step.taken.items), step.is_only), ("aa".into(), false));
    assert_eq!(scheduler.len(), 3, "places count while a number is chosen");
    let items = scheduler.commit(step, 1, false);
    assert_eq!((kinds(&items), scheduler.len()), ("a".into(), 2));
    let step = scheduler.step(now, &ONE).expect("some");
    assert_eq!(kinds(&step.taken.items), "b", "it is due before the second `a`");
    scheduler.commit(step, 1, false);
    let step = scheduler.step(now, &ONE).expect("some");
    assert!(step.is_only);
    assert_eq!(kinds(&scheduler.commit(step, 1, false)), "a");
    assert!(scheduler.step(now, &ONE).is_none());
}

#[test]
fn what_no_one_waits_for_takes_no_place() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(now, 1, 1);
    let candidate = candidate(now, 9 * SECOND, SECOND);
    let (reserved, promise) = scheduler.admit(now, candidate).expect("room");
    let rank = candidate.rank;
    scheduler.push(now, reserved, Item { kind: 'a', rank, is_abandoned: true, promise });
    scheduler.admit(now, candidate).expect("the client of the first has gone");
    assert_eq!(scheduler.items().count(), 0);
    assert!(matches!(scheduler.admit(now, candidate), Err(Refusal::Full { limit: 1, .. })));
}

#[test]
fn refused_requests_with_time_for_worse_plans_make_batches_hurry() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(now, 8, 1);
    queue(&mut scheduler, now, 'a', 40 * SECOND);
    let unhurried = scheduler.step(now, &ONE).expect("some");
    let allowance = unhurried.taken.shares[0].allowance;
    scheduler.commit(unhurried, 0, false);
    // Its deadline would be met by a batch of its own, but not behind the one that runs.
    scheduler.begin(now, 0, (2 * SECOND).into());
    let tight = candidate(now, Duration::from_millis(2_100), SECOND);
    assert!(matches!(scheduler.admit(now, tight), Err(Refusal::Late { .. })));
    let hurried = scheduler.step(now, &ONE).expect("some");
    assert_eq!(hurried.taken.shares[0].allowance, allowance.mul_f64(HURRY));
    scheduler.commit(hurried, 0, false);
    let later = now + 2 * LATELY;
    let step = scheduler.step(later, &ONE).expect("some");
    assert_eq!(step.taken.shares[0].allowance, allowance - 2 * LATELY);
}

#[test]
fn a_job_that_is_late_at_its_turn_makes_admission_stricter_for_a_while() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(now, 64, 1);
    let admitted = |scheduler: &mut Scheduler<Item>, now: Instant| {
        let need = Need { least: SECOND, alone: SECOND, batch_extra: 20 * SECOND };
        let rank = Rank { priority: 1, deadline: now + 20 * SECOND };
        let candidate = Candidate { rank, need, has_budget: true, is_free: false };
        let mut places = Vec::new();
        while let Ok(place) = scheduler.admit(now, candidate) {
            places.push(place);
        }
        let num = places.len();
        places.into_iter().for_each(|(reserved, promise)| {
            scheduler.give_up(now, reserved, &promise);
        });
        num
    };
    let before = admitted(&mut scheduler, now);
    for _ in 0..4 {
        queue(&mut scheduler, now, 'a', SECOND);
        let step = scheduler.step(now, &ONE).expect("some");
        scheduler.commit(step, 1, true);
    }
    let strict = admitted(&mut scheduler, now);
    assert!(strict < before, "{strict} of {before}");
    let later = now + 60 * SECOND;
    assert_eq!(admitted(&mut scheduler, later), before, "load is forgotten");
}

#[test]
fn the_last_thread_to_end_drops_what_waits() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(now, 8, 2);
    queue(&mut scheduler, now, 'a', SECOND);
    assert!(!scheduler.end_thread(0) && scheduler.len() == 1);
    assert!(scheduler.end_thread(1) && scheduler.len() == 0);
}
