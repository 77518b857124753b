//! Tests of admission, reserved places, and requests and batches that run alone.

use super::*;

fn candidate(now: Instant, left: Duration, alone: Duration) -> Candidate {
    let need = Need { least: alone, alone, batch_extra: Duration::ZERO };
    let rank = Rank { priority: 1, deadline: now + left };
    Candidate { rank, need, has_budget: true, is_free: true }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_idle_queue_admits_what_is_predicted_to_be_late() {
    let (queue, _receivers) = queue(8, 1);
    let now = Instant::now();
    let first = queue.admit(candidate(now, SECOND, 5 * SECOND)).expect("nothing else waits");
    assert!(!queue.is_busy_beside(&first));
    let second = queue.admit(candidate(now, SECOND, 5 * SECOND));
    assert!(matches!(second, Err(QueueError::Late { .. })), "{second:?}");
    drop(first);
    queue.admit(candidate(now, SECOND, 5 * SECOND)).expect("the place was given up");
}

#[test]
fn a_reserved_place_counts_until_it_is_given_up() {
    let (queue, _receivers) = queue(2, 1);
    let now = Instant::now();
    let places: Vec<Reservation> =
        (0..2).map(|_| queue.admit(candidate(now, 60 * SECOND, SECOND)).expect("room")).collect();
    assert!(queue.is_busy_beside(&places[0]));
    let third = queue.admit(candidate(now, 60 * SECOND, SECOND));
    assert!(matches!(third, Err(QueueError::Full { limit: 2, .. })), "{third:?}");
    drop(places);
    assert_eq!(queue.shared.lock().waiting.len(), 0);
}

#[test]
fn what_comes_beside_another_or_just_after_a_crowd_is_not_alone() {
    let (queue, _receivers) = queue(8, 1);
    let admit = || queue.admit(candidate(Instant::now(), 9 * SECOND, SECOND)).expect("room");
    assert!(admit().promise.is_alone);
    let first = admit();
    assert!(first.promise.is_alone, "the place before was given up");
    assert!(!admit().promise.is_alone, "the first still waits");
    drop(first);
    assert!(!admit().promise.is_alone, "two came at once just now");
}

#[test]
fn a_batch_is_alone_where_nothing_arrives_or_runs_beside_it() {
    let (queue, receivers) = queue(8, 2);
    let begun = receivers[0].begin(SECOND);
    assert!(receivers[0].end(begun, &[]));
    let begun = receivers[0].begin(SECOND);
    let beside = receivers[1].begin(SECOND);
    assert!(!receivers[0].end(begun, &[]) && !receivers[1].end(beside, &[]));
    let begun = receivers[0].begin(SECOND);
    let _place = queue.admit(candidate(Instant::now(), 9 * SECOND, SECOND)).expect("room");
    assert!(!receivers[0].end(begun, &[]));
}
