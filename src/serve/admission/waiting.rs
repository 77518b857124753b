//! Order in which requests run, by priority and then by deadline, and the time that the next batch
//! may take.
//!
//! This module is pure: it reads no clock and runs nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Waiting items by rank; of equal ranks, the item that came first is first.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    entries: BTreeMap<Key, Entry<T>>,
    count: u64,
}

type Key = (Rank, u64);

/// Urgency of an item, by priority and then by deadline; the most urgent is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: u32,
    pub(crate) deadline: Instant,
}

#[derive(Debug)]
struct Entry<T> {
    least: Duration,
    /// Item that waits, or `None` while its place is reserved.
    item: Option<T>,
}

/// Place of an admitted item that is being prepared.
#[derive(Debug)]
pub(crate) struct Reserved(Key);

/// Items that may run together, while their number is chosen. Their places are still taken.
#[derive(Debug)]
pub(crate) struct Taken<T> {
    keys: Vec<Key>,
    /// Items by rank, the most urgent first.
    pub(crate) items: Vec<T>,
    /// Time that batches of the first of them may take.
    pub(crate) shares: Vec<Share>,
}

/// Time that the first `size` items of a batch may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) size: usize,
    pub(crate) allowance: Duration,
    /// Time until the first deadline of these items.
    pub(crate) left: Duration,
}

/// Numbers of the threads that take waiting items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Threads {
    pub(crate) num_all: usize,
    /// Number of threads without work, including the one that asks.
    pub(crate) num_free: usize,
}

/// Least time that an item can take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Need {
    /// Time of the item as its part of a full batch.
    pub(crate) least: Duration,
    /// Time of a batch with the item alone.
    pub(crate) alone: Duration,
    /// Extra time of a full batch over a batch with the item alone, scaled by strictness.
    pub(crate) batch_extra: Duration,
}

/// Expected time of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Time until the batch is done.
    pub(crate) time: Duration,
    /// Part of it that the fastest plan would not take.
    pub(crate) spare: Duration,
}

impl From<Duration> for Expected {
    fn from(time: Duration) -> Self {
        Self { time, spare: Duration::ZERO }
    }
}

impl<T> Waiting<T> {
    /// Creates an empty queue.
    pub(crate) fn new() -> Self {
        Self { entries: BTreeMap::new(), count: 0 }
    }

    /// Returns the number of items and of reserved places.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the waiting items, in any order.
    pub(crate) fn items(&self) -> impl Iterator<Item = &T> {
        self.entries.values().filter_map(|entry| entry.item.as_ref())
    }

    /// Reserves a place for an item that takes at least `least`.
    pub(crate) fn reserve(&mut self, rank: Rank, least: Duration) -> Reserved {
        Reserved(self.insert(rank, Entry { least, item: None }))
    }

    /// Gives up a reserved place.
    pub(crate) fn release(&mut self, Reserved(key): Reserved) {
        self.entries.remove(&key);
    }

    /// Adds `item`, which takes at least `least`.
    pub(crate) fn push(&mut self, rank: Rank, least: Duration, item: T) {
        self.insert(rank, Entry { least, item: Some(item) });
    }

    fn insert(&mut self, rank: Rank, entry: Entry<T>) -> Key {
        self.count += 1;
        let key = (rank, self.count);
        self.entries.insert(key, entry);
        key
    }

    /// Returns the time at which every item may be done, or `None` without threads. The threads
    /// become free at `free`.
    pub(crate) fn done_at(&self, free: &[Instant]) -> Option<Instant> {
        let mut free = free.to_vec();
        let ends = self.entries.values().map(|entry| spend(&mut free, entry.least));
        ends.last().flatten().or_else(|| free.iter().min().copied())
    }

    /// Drops the items for which `stays` returns false, but no reserved place.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        self.entries.retain(|_, entry| entry.item.as_ref().is_none_or(&mut stays));
    }

    /// Takes the first item and those that may run with it, or returns `None` if no item is ready.
    /// Their places stay until [`settle`](Self::settle). `joins` returns whether an item may run
    /// with the members found so far. If other threads are idle, at most this thread's part of them
    /// may run. An item that is already late comes before all others, alone, since it waits for
    /// nothing.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        threads: Threads,
        mut joins: impl FnMut(&[&T], &T) -> bool,
    ) -> Option<Taken<T>> {
        let (mut keys, mut members) = (Vec::new(), Vec::new());
        let ready = || {
            let entries = self.entries.iter();
            entries.filter_map(|(key, entry)| entry.item.as_ref().map(|item| (key, item)))
        };
        let is_late = |((rank, _), _): &(&Key, &T)| rank.deadline <= now;
        if let Some((key, _)) = ready().find(is_late) {
            keys.push(*key);
        } else {
            for (key, item) in ready() {
                if members.is_empty() || joins(&members, item) {
                    keys.push(*key);
                    members.push(item);
                }
            }
        }
        let most = keys.len().div_ceil(threads.num_free.max(1));
        let sizes = (0..usize::BITS).map(|power| 1 << power).take_while(|size| *size < most);
        let sizes = sizes.chain((most > 0).then_some(most));
        let share = |size| self.share(now, &keys[..size], threads.num_all);
        let shares: Vec<Share> = sizes.map(share).collect();
        if shares.is_empty() {
            return None;
        }
        let entries = &mut self.entries;
        let items = keys.iter().filter_map(|key| entries.get_mut(key)?.item.take()).collect();
        Some(Taken { keys, items, shares })
    }

    /// Removes the first `size` of the taken items and returns them. The others wait again.
    pub(crate) fn settle(&mut self, Taken { keys, items, .. }: Taken<T>, size: usize) -> Vec<T> {
        let mut removed = Vec::with_capacity(size);
        for (index, (key, item)) in keys.into_iter().zip(items).enumerate() {
            match self.entries.get_mut(&key) {
                Some(entry) if index >= size => entry.item = Some(item),
                _ => {
                    self.entries.remove(&key);
                    removed.push(item);
                }
            }
        }
        removed
    }

    /// Returns the time that the batch of `keys` may take. Every waiting item of at least its
    /// priority keeps a share of the remaining time. The result is at most the time until the
    /// batch's first deadline. Each other item limits it to the time until that item's deadline,
    /// divided by a thread's batches until then. Their number assumes that batches of the same size
    /// and time follow.
    fn share(&self, now: Instant, keys: &[Key], num_threads: usize) -> Share {
        let until = |(rank, _): &Key| rank.deadline.saturating_duration_since(now);
        let left = keys.iter().map(until).min().unwrap_or_default();
        let lowest = keys.first().map_or(0, |(rank, _)| rank.priority);
        let others = self.entries.keys().take_while(|(rank, _)| rank.priority <= lowest);
        let others = others.filter(|key| keys.binary_search(key).is_err());
        let shares = others.zip(0_usize..).map(|(key, before)| {
            let batches = (before / keys.len() + 2).div_ceil(num_threads.max(1));
            until(key) / u32::try_from(batches).unwrap_or(u32::MAX)
        });
        Share {
            size: keys.len(),
            allowance: shares.min().map_or(left, |least| least.min(left)),
            left,
        }
    }

    /// Returns the time at which an item of `rank` may begin, or `None` without threads. The
    /// threads become free at `free`.
    pub(crate) fn start_of(&self, free: &[Instant], rank: Rank) -> Option<Instant> {
        self.free_before(free, rank).into_iter().min()
    }

    /// Returns the time at which each thread is done with the items before `rank`.
    fn free_before(&self, free: &[Instant], rank: Rank) -> Vec<Instant> {
        let mut free = free.to_vec();
        for (_, entry) in self.entries.range(..=(rank, u64::MAX)) {
            spend(&mut free, entry.least);
        }
        free
    }

    /// Returns whether another item can be done in time if every item takes its least time. The
    /// threads become free at `free`. The new item must not make an item of its priority late that
    /// would be in time.
    ///
    /// The new item takes `least` off the time of others. Its own time is `alone`, or that of its
    /// batch if others wait before it. Its batch is as large as theirs or full. Batches that must
    /// stay small for items that are due would make later items late.
    pub(crate) fn has_room(
        &self,
        free: &[Instant],
        rank: Rank,
        Need { least, alone, batch_extra }: Need,
    ) -> bool {
        let mut without = self.free_before(free, rank);
        let Some((start, first)) = without.iter().min().zip(free.iter().min()) else {
            return false;
        };
        let batch_extra = start.saturating_duration_since(*first).min(batch_extra);
        if *start + alone + batch_extra > rank.deadline {
            return false;
        }
        let mut with = without.clone();
        spend(&mut with, least);
        let after = self.entries.range((rank, u64::MAX)..);
        let mut after = after.take_while(|((other, _), _)| other.priority == rank.priority);
        after.all(|((Rank { deadline, .. }, _), entry)| {
            let (end, later) = (spend(&mut without, entry.least), spend(&mut with, entry.least));
            end.is_none_or(|end| end > *deadline) || later.is_some_and(|later| later <= *deadline)
        })
    }
}

/// Adds `time` to the thread that is free first. Returns the end of that time, or `None` without
/// threads.
fn spend(free: &mut [Instant], time: Duration) -> Option<Instant> {
    let first = free.iter_mut().min()?;
    *first += time;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const ONE: Threads = Threads { num_all: 1, num_free: 1 };

    fn rank(deadline: Instant) -> Rank {
        Rank { priority: 1, deadline }
    }

    fn pop<T>(waiting: &mut Waiting<T>, now: Instant) -> Option<(T, Duration)> {
        let taken = waiting.take(now, ONE, |_, _| false)?;
        let allowance = taken.shares[0].allowance;
        waiting.settle(taken, 1).pop().map(|item| (item, allowance))
    }

    #[test]
    fn what_is_due_first_runs_first_and_leaves_time_for_the_rest() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        for (name, deadline) in [("b", 40), ("c", 41), ("a", 30), ("late b", 40)] {
            waiting.push(rank(now + ms(deadline)), ms(1), name);
        }
        // 30 / 1, 40 / 2, 40 / 3 and 41 / 4.
        assert_eq!(pop(&mut waiting, now), Some(("a", ms(41) / 4)));
        assert_eq!(pop(&mut waiting, now), Some(("b", ms(41) / 3)));
        assert_eq!(pop(&mut waiting, now + ms(39)), Some(("late b", ms(1))));
        assert_eq!(pop(&mut waiting, now + ms(50)), Some(("c", ms(0))));
        assert_eq!(pop(&mut waiting, now), None);
    }

    #[test]
    fn what_runs_together_shares_the_time() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        for (name, deadline) in [("a1", 10), ("b1", 12), ("a2", 14), ("a3", 30), ("b2", 40)] {
            waiting.push(rank(now + ms(deadline)), ms(1), name);
        }
        let joins = |members: &[&&str], next: &&str| members[0][..1] == next[..1];
        let taken = waiting.take(now, ONE, joins).expect("some");
        assert_eq!(taken.items, ["a1", "a2", "a3"]);
        let shares: Vec<_> =
            taken.shares.iter().map(|share| (share.size, share.allowance)).collect();
        // Alone: 14 / 3. Two: b1 and a3 follow in one batch, 12 / 2. Three: b1 and b2, as well.
        assert_eq!(shares, [(1, ms(14) / 3), (2, ms(6)), (3, ms(6))]);
        assert_eq!(waiting.len(), 5, "places are kept while the number is chosen");
        let beside = waiting.take(now, ONE, joins).expect("others are ready");
        assert_eq!(beside.items, ["b1", "b2"]);
        assert_eq!(waiting.settle(beside, 0), [""; 0]);
        assert_eq!(waiting.settle(taken, 2), ["a1", "a2"]);
        assert_eq!(waiting.len(), 3);
        assert_eq!(pop(&mut waiting, now).map(|(item, _)| item), Some("b1"));
        assert_eq!(pop(&mut waiting, now).map(|(item, _)| item), Some("a3"));
    }

    #[test]
    fn threads_share_what_waits() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        for deadline in [40, 40, 40, 40, 60] {
            waiting.push(rank(now + ms(deadline)), ms(1), deadline);
        }
        // With another thread idle it takes three of five; the last two are one batch more.
        let threads = Threads { num_all: 2, num_free: 2 };
        let taken = waiting.take(now, threads, |_, _| true).expect("some");
        let last = *taken.shares.last().expect("one");
        assert_eq!((last.size, last.allowance), (3, ms(40)));
        waiting.settle(taken, 3);
        // All three threads but this one are busy.
        let threads = Threads { num_all: 3, num_free: 1 };
        let taken = waiting.take(now, threads, |_, _| true).expect("some");
        assert_eq!((taken.shares[0].size, taken.shares[0].allowance), (1, ms(40)));
    }

    #[test]
    fn what_is_of_lower_priority_takes_what_is_left() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        let at = |priority, deadline| Rank { priority, deadline: now + ms(deadline) };
        waiting.push(at(2, 10), ms(8), "low");
        waiting.push(at(1, 40), ms(8), "high");
        // A new item of high priority may make the low one late, but not the high one.
        let need = Need { least: ms(20), alone: ms(20), batch_extra: ms(0) };
        assert!(waiting.has_room(&[now], at(1, 30), need));
        let need = Need { least: ms(33), alone: ms(33), batch_extra: ms(0) };
        assert!(!waiting.has_room(&[now], at(1, 39), need));
        // An item of low priority comes after both.
        let need = Need { least: ms(1), alone: ms(1), batch_extra: ms(0) };
        assert!(
            waiting.has_room(&[now], at(2, 17), need) && !waiting.has_room(&[now], at(2, 16), need)
        );
        assert_eq!(pop(&mut waiting, now), Some(("high", ms(40))));
        assert_eq!(pop(&mut waiting, now), Some(("low", ms(10))));
    }

    #[test]
    fn what_is_late_is_told_before_what_is_of_higher_priority() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        waiting.push(Rank { priority: 2, deadline: now + ms(10) }, ms(1), "low");
        waiting.push(Rank { priority: 1, deadline: now + ms(40) }, ms(1), "high");
        assert_eq!(pop(&mut waiting, now + ms(10)), Some(("low", ms(0))));
        waiting.retain(|_| false);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn there_is_room_for_what_ends_in_time_and_makes_nothing_late() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        waiting.push(rank(now + ms(10)), ms(4), ());
        waiting.push(rank(now + ms(20)), ms(10), ());
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
            // Both items are late anyway, so nothing is lost.
            (18, 19, 1, false),
            (18, 40, 5, true),
        ] {
            let need = Need { least: ms(least), alone: ms(least), batch_extra: ms(0) };
            let found = waiting.has_room(&[now + ms(start)], rank(now + ms(deadline)), need);
            assert_eq!(found, expected, "{start} {deadline} {least}");
        }
    }

    #[test]
    fn behind_others_there_is_room_for_a_batch_as_large_as_theirs() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        let need = Need { least: ms(4), alone: ms(6), batch_extra: ms(30) };
        let count = |waiting: &mut Waiting<()>, budget| {
            let deadline = rank(now + ms(budget));
            while waiting.has_room(&[now], deadline, need) {
                waiting.push(deadline, ms(4), ());
            }
            waiting.len()
        };
        // Alone: 6 ≤ 8; with one before it 4 + 6 + 4 > 8.
        assert_eq!(count(&mut waiting, 8), 1);
        // Behind n: 4 n + 6 + 4 n ≤ 50.
        assert_eq!(count(&mut waiting, 50), 6);
        // Behind n: 4 n + 6 + 30 ≤ 100.
        assert_eq!(count(&mut waiting, 100), 17);
    }

    proptest! {
        #[test]
        fn everything_admitted_can_be_done_in_time(
            jobs in proptest::collection::vec((1_u64..200, 1_u64..40), 1..30),
            num_threads in 1_usize..4,
        ) {
            let now = Instant::now();
            let mut waiting = Waiting::new();
            for (deadline, least) in jobs {
                let need = Need { least: ms(least), alone: ms(least), batch_extra: ms(0) };
                if waiting.has_room(&vec![now; num_threads], rank(now + ms(deadline)), need) {
                    waiting.push(rank(now + ms(deadline)), ms(least), (deadline, least));
                }
            }
            let mut free = vec![0; num_threads];
            while let Some(((deadline, least), _)) = pop(&mut waiting, now) {
                let first = free.iter_mut().min().expect("a thread");
                *first += least;
                prop_assert!(*first <= deadline);
            }
        }
    }
}
