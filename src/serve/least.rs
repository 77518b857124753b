//! What the fastest plans take, remembered: requests are refused by it, which must cost nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::plan::Budget;

/// The most budgets and shapes that are remembered; they come from clients.
const MOST: usize = 1024;

/// What the choice of the fastest plan depends on besides the tables.
type Key = ((usize, usize), Option<u64>, Option<u64>);

/// The seconds that the fastest plans take, on a machine as fast as it was when it was profiled.
#[derive(Debug)]
pub(super) struct Fastest<T> {
    known: Mutex<Known<T>>,
}

#[derive(Debug)]
struct Known<T> {
    /// The plans that are remembered.
    tables: Option<Arc<T>>,
    /// `None` where no plan meets the budget.
    seconds: HashMap<Key, Option<f64>>,
}

impl<T> Default for Fastest<T> {
    fn default() -> Self {
        Self { known: Mutex::new(Known { tables: None, seconds: HashMap::new() }) }
    }
}

impl<T> Fastest<T> {
    /// Returns the seconds that the fastest of `tables` within `budget` takes at `shape` (rows,
    /// tokens): what `find` returned for them, which is called where that is not known. The
    /// budget's latency and plan do not count.
    pub(super) fn seconds(
        &self,
        tables: &Arc<T>,
        shape: (usize, usize),
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
        let get =
            |tables, rows, budget, found| fastest.seconds(tables, (rows, 8), budget, || found);
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
            fastest.seconds(&tables, (rows, 1), &Budget::default(), || None);
            assert!(fastest.known.lock().expect("no panic").seconds.len() <= MOST);
        }
    }
}
