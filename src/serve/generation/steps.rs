//! Choice of the sequences that run in a step, and of their tokens.
//!
//! This module is pure: it reads no clock and runs nothing. A prompt runs in chunks that end at
//! multiples of [`CHUNK`], whatever else runs, and every later token runs alone. So a sequence
//! gives the same bits under any load, and also after it was preempted and its tokens ran again.

use std::collections::BTreeMap;

/// Number of tokens at whose multiples the chunks of a prompt end.
pub(crate) const CHUNK: usize = 64;

/// Number of steps after which more sequences may run again although memory lacked. Others may
/// have given it back.
const PAUSE: u32 = 256;

/// Key of a sequence in the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceKey(pub(crate) u64);

/// Bounds of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most sequences that hold a cache.
    pub(crate) max_running: usize,
    /// Most tokens of prompts in a step while no sequence generates.
    pub(crate) prompt_tokens: usize,
    /// Most tokens of prompts in a step beside sequences that generate, which wait for them.
    pub(crate) prompt_tokens_beside: usize,
}

/// A sequence that asks for its turns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// Client whose share of the turns counts.
    pub(crate) client: u64,
    /// Priority; a lower number goes first.
    pub(crate) priority: u32,
    /// Number of tokens of the prompt.
    pub(crate) num_prompt: usize,
}

/// Tokens of a sequence in a step: those from `start` to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) key: SequenceKey,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Whether the step's last token is the sequence's last, so that the next one is to be chosen.
    pub(crate) is_last: bool,
}

/// Sequences by what they wait for.
#[derive(Debug)]
pub(crate) struct Steps {
    bounds: Bounds,
    /// Sequences without a cache, by key; their tokens run from the start.
    waiting: BTreeMap<SequenceKey, State>,
    /// Sequences with a cache, by key.
    running: BTreeMap<SequenceKey, State>,
    /// Number of tokens that ran for each client with a sequence here.
    served: BTreeMap<u64, u64>,
    /// Number of times that a sequence got a cache or a prompt had its turn.
    num_events: u64,
    num_preempted: u64,
    /// Number of steps until a sequence that waits gets a cache, unless one with a cache ends.
    pause: u32,
}

#[derive(Debug, Clone, Copy)]
struct State {
    asked: Asked,
    /// Number of tokens so far.
    length: usize,
    /// Number of tokens that the cache holds.
    cached: usize,
    /// Number of the event since which the prompt waits for its turn: it got a cache, or had a
    /// turn.
    since: u64,
}

impl State {
    /// Returns the end of the tokens that run next.
    fn end(&self) -> usize {
        let chunk_end = (self.cached / CHUNK + 1) * CHUNK;
        match self.cached < self.asked.num_prompt {
            true => chunk_end.min(self.asked.num_prompt),
            false => self.cached + 1,
        }
    }

    fn turn(&self, key: SequenceKey) -> Turn {
        let end = self.end();
        Turn { key, start: self.cached, end, is_last: end == self.length }
    }

    /// Returns whether the sequence generates: its prompt has run.
    fn generates(&self) -> bool {
        self.cached >= self.asked.num_prompt
    }
}

impl Steps {
    /// Creates steps without sequences.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            served: BTreeMap::new(),
            num_events: 0,
            num_preempted: 0,
            pause: 0,
        }
    }

    /// Adds a sequence, whose key is larger than those before.
    pub(crate) fn add(&mut self, key: SequenceKey, asked: Asked) {
        // A new client starts beside the one that was served least, not far before all others.
        let least = self.served.values().copied().min().unwrap_or(0);
        self.served.entry(asked.client).or_insert(least);
        let length = asked.num_prompt;
        self.waiting.insert(key, State { asked, length, cached: 0, since: 0 });
    }

    /// Returns the number of an event that happens now.
    fn event(&mut self) -> u64 {
        self.num_events += 1;
        self.num_events
    }

    /// Removes a sequence that has ended.
    pub(crate) fn remove(&mut self, key: SequenceKey) {
        let ended = self.running.remove(&key);
        if ended.is_some() {
            self.pause = 0;
        }
        let removed = ended.or_else(|| self.waiting.remove(&key));
        let Some(State { asked: Asked { client, .. }, .. }) = removed else { return };
        let mut others = self.waiting.values().chain(self.running.values());
        if !others.any(|state| state.asked.client == client) {
            self.served.remove(&client);
        }
    }

    /// Returns whether there is no sequence.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Returns the number of sequences that wait for a cache, and of those that have one.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Returns how often a sequence lost its cache to another.
    pub(crate) fn num_preempted(&self) -> u64 {
        self.num_preempted
    }

    /// Returns the turns of the next step: the next token of every sequence that generates, and
    /// chunks of prompts within the bounds. Sequences that wait get a cache while there is room.
    pub(crate) fn next(&mut self) -> Vec<Turn> {
        self.pause = self.pause.saturating_sub(1);
        self.admit();
        let generating = self.running.iter().filter(|(_, state)| state.generates());
        let mut turns: Vec<Turn> = generating.map(|(key, state)| state.turn(*key)).collect();
        let mut left = match turns.is_empty() {
            true => self.bounds.prompt_tokens,
            false => self.bounds.prompt_tokens_beside,
        };
        for (place, key) in self.prompts().into_iter().enumerate() {
            let turn = self.running[&key].turn(key);
            let num_tokens = turn.end - turn.start;
            // One chunk always runs, so that no prompt is kept from its turn.
            if num_tokens > left && place > 0 {
                break;
            }
            left = left.saturating_sub(num_tokens);
            let since = self.event();
            self.running.entry(key).and_modify(|state| state.since = since);
            turns.push(turn);
        }
        turns
    }

    /// Notes that the tokens of `turn` ran.
    pub(crate) fn ran(&mut self, turn: Turn) {
        let Some(state) = self.running.get_mut(&turn.key) else { return };
        state.cached = turn.end;
        let served = self.served.entry(state.asked.client).or_default();
        *served += (turn.end - turn.start) as u64;
    }

    /// Notes that a token was added to a sequence.
    pub(crate) fn grew(&mut self, key: SequenceKey) {
        if let Some(state) = self.running.get_mut(&key) {
            state.length += 1;
        }
    }

    /// Notes that a sequence starts with `cached` tokens of its prompt in its cache. Returns its
    /// turn after them.
    pub(crate) fn found(&mut self, key: SequenceKey, cached: usize) -> Option<Turn> {
        let state = self.running.get_mut(&key)?;
        state.cached = cached;
        Some(state.turn(key))
    }

    /// Takes the cache of the sequence that can wait best, and returns its key: of the lowest
    /// priority, the latest one. It waits until another one ends, or for some steps. Returns `None`
    /// if less than two sequences have a cache.
    pub(crate) fn preempt(&mut self) -> Option<SequenceKey> {
        if self.running.len() < 2 {
            return None;
        }
        let by_rank = |(key, state): &(&SequenceKey, &State)| (state.asked.priority, **key);
        let key = *self.running.iter().max_by_key(by_rank)?.0;
        let state = self.running.remove(&key)?;
        self.waiting.insert(key, State { cached: 0, ..state });
        self.num_preempted += 1;
        self.pause = PAUSE;
        Some(key)
    }

    /// Gives caches to sequences that wait: by priority, then by their clients' shares, then by
    /// their arrival. After a preemption only one that can wait less than one with a cache gets
    /// one: any other would lack the same memory, and be preempted in every step.
    fn admit(&mut self) {
        while self.running.len() < self.bounds.max_running {
            let rank = |(key, state): &(&SequenceKey, &State)| {
                let Asked { client, priority, .. } = state.asked;
                let num_own = self.running.values().filter(|own| own.asked.client == client);
                (priority, num_own.count(), self.served.get(&client).copied(), **key)
            };
            let Some(key) = self.waiting.iter().min_by_key(rank).map(|(key, _)| *key) else {
                return;
            };
            let last = self.running.values().map(|state| state.asked.priority).max();
            if self.pause > 0 && last.is_some_and(|last| self.waiting[&key].asked.priority >= last)
            {
                return;
            }
            if let Some(state) = self.waiting.remove(&key) {
                let since = self.event();
                self.running.insert(key, State { since, ..state });
            }
        }
    }

    /// Returns the sequences whose prompts have not run, in the order of their turns: by priority,
    /// and then by the time for which they wait. One that gets its cache later does not go before.
    fn prompts(&self) -> Vec<SequenceKey> {
        let unread = self.running.iter().filter(|(_, state)| !state.generates());
        let mut found: Vec<(u32, u64, SequenceKey)> =
            unread.map(|(key, state)| (state.asked.priority, state.since, *key)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, _, key)| key).collect()
    }
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
