//! The order in which requests run, and how long the next one may take: earliest deadline first.
//!
//! Pure: it reads no clock and runs nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What waits, by deadline; of equal ones the first comes first.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    entries: BTreeMap<(Instant, u64), Entry<T>>,
    count: u64,
}

#[derive(Debug)]
struct Entry<T> {
    least: Duration,
    item: T,
}

impl<T> Waiting<T> {
    /// Nothing waits.
    pub(super) fn new() -> Self {
        Self { entries: BTreeMap::new(), count: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns everything that waits, in no order that matters.
    pub(super) fn items(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|entry| &entry.item)
    }

    /// Adds `item`, which takes `least` or longer.
    pub(super) fn push(&mut self, deadline: Instant, least: Duration, item: T) {
        self.count += 1;
        self.entries.insert((deadline, self.count), Entry { least, item });
    }

    /// Removes what is due first. Beside it stands how long it may take at `now`, so that each that
    /// waits has its share of the time that is left: the least over all `j` of the time until the
    /// `j`-th deadline, divided by `j`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(T, Duration)> {
        let allowance = self.allowance(now);
        self.entries.pop_first().map(|(_, entry)| (entry.item, allowance))
    }

    fn allowance(&self, now: Instant) -> Duration {
        let deadlines = self.entries.keys().map(|(deadline, _)| *deadline);
        let shares = deadlines.zip(1_u32..).map(|(deadline, j)| (deadline - now) / j);
        shares.min().unwrap_or_default()
    }

    /// Tells whether something more can be done in time if everything takes the least it can and
    /// begins at `start`, and nothing that would be in time is made late by it.
    pub(super) fn has_room(&self, start: Instant, deadline: Instant, least: Duration) -> bool {
        let before = self.entries.range(..=(deadline, u64::MAX));
        let mut end = start + before.map(|(_, entry)| entry.least).sum::<Duration>();
        if end + least > deadline {
            return false;
        }
        let after = self.entries.range((deadline, u64::MAX)..);
        after.into_iter().all(|((deadline, _), entry)| {
            end += entry.least;
            end > *deadline || end + least <= *deadline
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_is_due_first_runs_first_and_leaves_time_for_the_rest() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        for (name, deadline) in [("b", 40), ("c", 41), ("a", 30), ("late b", 40)] {
            waiting.push(now + ms(deadline), ms(1), name);
        }
        // 30 / 1, 40 / 2, 40 / 3 and 41 / 4.
        assert_eq!(waiting.pop(now), Some(("a", ms(41) / 4)));
        assert_eq!(waiting.pop(now), Some(("b", ms(41) / 3)));
        assert_eq!(waiting.pop(now + ms(39)), Some(("late b", ms(1))));
        assert_eq!(waiting.pop(now + ms(50)), Some(("c", ms(0))));
        assert_eq!(waiting.pop(now), None);
    }

    #[test]
    fn there_is_room_for_what_ends_in_time_and_makes_nothing_late() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        waiting.push(now + ms(10), ms(4), ());
        waiting.push(now + ms(20), ms(10), ());
        for (start, deadline, least, expected) in [
            (0, 3, 3, true),
            (0, 3, 4, false),
            // Behind the first, before the second: 4 + 5 + 10 ≤ 20, but not 4 + 7 + 10.
            (0, 15, 5, true),
            (0, 15, 7, false),
            // Last.
            (0, 20, 6, true),
            (0, 20, 7, false),
            (3, 20, 6, false),
            // Both are late as it is, so nothing is lost.
            (18, 19, 1, false),
            (18, 40, 5, true),
        ] {
            let found = waiting.has_room(now + ms(start), now + ms(deadline), ms(least));
            assert_eq!(found, expected, "{start} {deadline} {least}");
        }
    }

    proptest! {
        #[test]
        fn everything_admitted_can_be_done_in_time(
            jobs in proptest::collection::vec((1_u64..200, 1_u64..40), 1..30)
        ) {
            let now = Instant::now();
            let mut waiting = Waiting::new();
            for (deadline, least) in jobs {
                if waiting.has_room(now, now + ms(deadline), ms(least)) {
                    waiting.push(now + ms(deadline), ms(least), (deadline, least));
                }
            }
            let mut time = 0;
            while let Some(((deadline, least), _)) = waiting.pop(now + ms(time)) {
                time += least;
                prop_assert!(time <= deadline);
            }
        }
    }
}
