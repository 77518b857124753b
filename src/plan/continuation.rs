//! The rule by which a running sequence may change its plan.
//!
//! A cache of keys and values belongs to the attention module that wrote it. A sequence goes on
//! with another plan at once if each attention module of that plan has a cache of every position so
//! far. Feed-forward modules change freely. So a step to fewer attention modules is free, and a
//! step to others costs a prefill of the positions that they miss. The rule holds lengths only; it
//! knows no memory and runs nothing.

use std::collections::BTreeMap;

/// Lengths of the caches that a running sequence owns, by attention module.
///
/// A prefill fills a cache from its first missing position on, so of a cache with a gap only the
/// part before the gap counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheLengths {
    /// Number of positions so far, prompt included.
    position: usize,
    /// Number of leading positions without a gap, by module; a module without a cache is left out.
    lengths: BTreeMap<usize, usize>,
}

/// Work that a change of plan costs before the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuation {
    /// Every cache is there.
    Free,
    /// The plan first runs over the positions from `start` to the current one.
    Prefill {
        /// First position that an attention module of the plan misses.
        start: usize,
        /// Number of positions to run over.
        num_tokens: usize,
    },
}

impl CacheLengths {
    /// Returns the number of positions so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Returns the cost of going on with a plan whose attention modules are `attention`.
    pub fn continuation(&self, attention: &[usize]) -> Continuation {
        let length = |module| self.lengths.get(module).copied().unwrap_or(0);
        let start = attention.iter().map(length).min().unwrap_or(self.position);
        match self.position - start {
            0 => Continuation::Free,
            num_tokens => Continuation::Prefill { start, num_tokens },
        }
    }

    /// Notes that a plan with these `attention` modules ran over `num_tokens` new positions, after
    /// the prefill that its [`continuation`](Self::continuation) asked for.
    pub fn advance(&mut self, attention: &[usize], num_tokens: usize) {
        self.position += num_tokens;
        self.lengths.extend(attention.iter().map(|module| (*module, self.position)));
    }

    /// Notes that the positions from `position` on were taken back.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
        self.lengths.values_mut().for_each(|length| *length = (*length).min(position));
    }

    /// Notes that the cache of `module` was freed.
    pub fn free(&mut self, module: usize) {
        self.lengths.remove(&module);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NUM_MODULES: usize = 6;

    /// A step in the life of a sequence.
    #[derive(Debug, Clone)]
    enum Step {
        Run { attention: Vec<usize>, num_tokens: usize },
        Truncate { position: usize },
        Free { module: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let attention = proptest::collection::vec(0..NUM_MODULES, 0..NUM_MODULES);
        prop_oneof![
            4 => (attention, 1..5_usize)
                .prop_map(|(attention, num_tokens)| Step::Run { attention, num_tokens }),
            1 => (0..20_usize).prop_map(|position| Step::Truncate { position }),
            1 => (0..NUM_MODULES).prop_map(|module| Step::Free { module }),
        ]
    }

    /// Every position that every module has written, one by one.
    #[derive(Debug, Default)]
    struct Written {
        position: usize,
        cells: BTreeSet<(usize, usize)>,
    }

    impl Written {
        /// Returns the first position before the current one that a module of `attention` misses.
        fn first_missing(&self, attention: &[usize]) -> Option<usize> {
            let misses = |position: &usize| {
                attention.iter().any(|module| !self.cells.contains(&(*module, *position)))
            };
            (0..self.position).find(misses)
        }

        fn take(&mut self, step: &Step) {
            match step {
                Step::Run { attention, num_tokens } => {
                    let start = self.first_missing(attention).unwrap_or(self.position);
                    self.position += num_tokens;
                    let cells = attention.iter().flat_map(|module| {
                        (start..self.position).map(move |position| (*module, position))
                    });
                    self.cells.extend(cells);
                }
                Step::Truncate { position } => {
                    self.position = self.position.min(*position);
                    self.cells.retain(|(_, cell)| cell < position);
                }
                Step::Free { module } => self.cells.retain(|(owner, _)| owner != module),
            }
        }
    }

    proptest! {
        #[test]
        fn the_rule_agrees_with_every_position_of_every_cache(
            steps in proptest::collection::vec(step(), 0..30),
            asked in proptest::collection::vec(0..NUM_MODULES, 0..NUM_MODULES),
        ) {
            let (mut lengths, mut written) = (CacheLengths::default(), Written::default());
            for step in steps {
                written.take(&step);
                match &step {
                    Step::Run { attention, num_tokens } => lengths.advance(attention, *num_tokens),
                    Step::Truncate { position } => lengths.truncate(*position),
                    Step::Free { module } => lengths.free(*module),
                }
                let expected = written.first_missing(&asked).map_or(Continuation::Free, |start| {
                    Continuation::Prefill { start, num_tokens: written.position - start }
                });
                prop_assert_eq!(lengths.continuation(&asked), expected);
                prop_assert_eq!(lengths.position(), written.position);
            }
        }
    }

    #[test]
    fn fewer_attention_modules_are_free_and_others_cost_what_they_miss() {
        let mut lengths = CacheLengths::default();
        lengths.advance(&[0, 1, 2], 10);
        assert_eq!(lengths.continuation(&[0, 2]), Continuation::Free);
        lengths.advance(&[0, 2], 3);
        let back = Continuation::Prefill { start: 10, num_tokens: 3 };
        assert_eq!(lengths.continuation(&[0, 1, 2]), back);
        let whole = Continuation::Prefill { start: 0, num_tokens: 13 };
        assert_eq!(lengths.continuation(&[0, 3]), whole);
    }
}
