//! Tests of reserved places and of closing.

use super::*;
use crate::serve::admission::waiting::{Need, Rank};

fn candidate() -> Candidate {
    let alone = Duration::from_secs(1);
    let need = Need { least: alone, alone, batch_extra: Duration::ZERO };
    let rank = Rank { priority: 1, deadline: Instant::now() + 60 * alone };
    Candidate { rank, need, has_budget: true, is_free: true }
}

#[test]
fn a_reserved_place_counts_until_it_is_given_up() {
    let (queue, _receivers) = queue(2, 1);
    let places: Vec<Reservation> =
        (0..2).map(|_| queue.admit(candidate()).expect("room")).collect();
    assert!(queue.is_busy_beside(&places[0]));
    let third = queue.admit(candidate());
    let is_full = matches!(third, Err(QueueError::Refused(Refusal::Full { limit: 2, .. })));
    assert!(is_full, "{third:?}");
    drop(places);
    assert_eq!(queue.shared.lock().scheduler.len(), 0);
}

#[test]
fn threads_are_told_when_the_queue_is_dropped_and_requests_when_the_threads_are() {
    let (open, mut receivers) = queue(2, 2);
    let clone = open.clone();
    drop(open);
    assert!(matches!(receivers[0].next(Patience::None), Next::Nothing), "a clone is left");
    drop(receivers.pop());
    clone.admit(candidate()).expect("a thread is left");
    drop(receivers);
    assert!(matches!(clone.admit(candidate()), Err(QueueError::Closed)));
    let (open, receivers) = queue(2, 1);
    drop(open);
    assert!(matches!(receivers[0].next(Patience::Endless), Next::Closed));
}

#[test]
fn a_family_is_removed_when_no_plan_is_being_chosen_for_it() {
    let (queue, receivers) = queue(2, 1);
    queue.shared.lock().choosing.push(FamilyKey(7));
    queue.remove(FamilyKey(7));
    queue.remove(FamilyKey(8));
    assert!(matches!(receivers[0].next(Patience::None), Next::Task(Task::Remove(FamilyKey(8)))));
    assert!(matches!(receivers[0].next(Patience::None), Next::Nothing));
    queue.shared.lock().choosing.clear();
    assert!(matches!(receivers[0].next(Patience::None), Next::Task(Task::Remove(FamilyKey(7)))));
}
