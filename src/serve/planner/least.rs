//! Cache of the fastest plans' latencies, by which admission refuses requests at next to no cost.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::plan::Budget;
use crate::plan::Shape;

/// Largest number of budgets and shapes in the cache, since clients choose them.
const MOST: usize = 1024;

/// Inputs of the choice of the fastest plan, besides the tables: shape, memory and quality bits.
type Key = (Shape, Option<u64>, Option<u64>);

/// Cache of the seconds that the fastest plans take, on a machine as fast as when it was profiled.
#[derive(Debug)]
pub(super) struct Fastest<T> {
    known: Mutex<Known<T>>,
}

#[derive(Debug)]
struct Known<T> {
    /// Tables of the plans whose latencies are in the cache.
    tables: Option<Arc<T>>,
    /// Seconds of the fastest plan, or `None` if no plan meets the budget.
    seconds: HashMap<Key, Option<f64>>,
}

impl<T> Default for Fastest<T> {
    fn default() -> Self {
        Self { known: Mutex::new(Known { tables: None, seconds: HashMap::new() }) }
    }
}

impl<T> Fastest<T> {
    /// Returns the seconds that the fastest plan of `tables` within `budget` takes at `shape`, or
    /// `None` if no plan meets `budget`. Calls `find` if the cache lacks the answer. Ignores the
    /// latency and the plan of `budget`.
    pub(super) fn seconds(
        &self,
        tables: &Arc<T>,
        shape: Shape,
        budget: &Budget,
        find: impl FnOnce() -> Option<f64>,
    ) -> Option<f64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = known.tables.as_ref().is_some_and(|known| Arc::ptr_eq(known, tables));
        if !is_same || known.seconds.len() >= MOST {
            *known = Known { tables: Some(tables.clone()), seconds: HashMap::new() };
        }
        let key = (shape, budget.memory_bytes, budget.min_quality.map(f64::to_bits));
        *known.seconds.entry(key).or_insert_with(find)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_remembered_while_the_plans_cost_the_same() {
        let fastest = Fastest::default();
        let (tables, budget) = (Arc::new("tables"), Budget::default());
        let get = |tables, rows, budget, found| {
            fastest.seconds(tables, Shape::new(rows, 8), budget, || found)
        };
        assert_eq!(get(&tables, 1, &budget, Some(1.0)), Some(1.0));
        assert_eq!(get(&tables, 1, &budget, Some(2.0)), Some(1.0));
        assert_eq!(get(&tables, 2, &budget, Some(2.0)), Some(2.0));
        let better = Budget { min_quality: Some(0.9), ..Budget::default() };
        assert_eq!(get(&tables, 1, &better, None), None);
        assert_eq!(get(&Arc::new("tables"), 1, &budget, Some(3.0)), Some(3.0));
    }

    #[test]
    fn no_more_is_remembered_than_a_bound() {
        let (fastest, tables) = (Fastest::default(), Arc::new(()));
        for rows in 0..2 * MOST {
            fastest.seconds(&tables, Shape::new(rows, 1), &Budget::default(), || None);
            assert!(fastest.known.lock().expect("no panic").seconds.len() <= MOST);
        }
    }
}
