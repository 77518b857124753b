//! Steps of a family's sequences on an inference thread.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    kept::{Kept, Sharing},
    live::{Live, NewSequence},
    sampling::Sampler,
    steps::{Bounds, SequenceKey, Steps, Turn},
};
use crate::{
    plan::Plan,
    runtime::{Activation, Executor, RuntimeError, Sequence, StepBatch, StepRow, Tokens},
    serve::{
        error::ServeError,
        observe::{Observer, SequenceReport, StepChange, reported},
    },
    tensor::signed,
};

/// Bounds of a generator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most sequences that wait or run.
    pub(crate) max_sequences: usize,
    pub(crate) steps: Bounds,
    /// Clients that share the beginnings of prompts.
    pub(crate) sharing: Sharing,
}

/// Sequences of a family, and the steps that they run together.
#[derive(Debug)]
pub(crate) struct Generator {
    executor: Arc<Executor>,
    limits: Limits,
    /// Sequences that have arrived since the last step.
    inbox: Mutex<Vec<NewSequence>>,
    /// Time that the last step took, in microseconds.
    step_us: AtomicU64,
    /// Number of sequences, those of the inbox included.
    num_sequences: AtomicUsize,
    turning: Mutex<Turning>,
}

/// State that only the thread that runs a step reads.
#[derive(Debug)]
struct Turning {
    steps: Steps,
    live: BTreeMap<SequenceKey, Live>,
    kept: Kept,
    sampler: Sampler,
    next_key: u64,
    /// Reports on sequences that have ended in this step.
    ended: Vec<SequenceReport>,
    /// State that observers know; `None` once the family is left.
    told: Option<State>,
}

/// State of the sequences after a step.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    num_running: usize,
    num_waiting: usize,
    num_preempted: u64,
    cache_bytes: u64,
}

/// Executor of a step, and its observer.
#[derive(Clone, Copy)]
struct Runner<'a> {
    executor: &'a Executor,
    observer: &'a dyn Observer,
}

/// Turns of sequences on the same plan.
struct Group {
    plan: Plan,
    turns: Vec<Turn>,
}

impl Generator {
    /// Creates a generator without sequences.
    pub(crate) fn new(executor: Arc<Executor>, limits: Limits) -> Self {
        let turning = Turning {
            steps: Steps::new(limits.steps),
            live: BTreeMap::new(),
            kept: Kept::new(limits.sharing),
            sampler: Sampler::default(),
            next_key: 0,
            ended: Vec::new(),
            told: Some(State::default()),
        };
        Self {
            executor,
            limits,
            inbox: Mutex::default(),
            step_us: AtomicU64::new(0),
            num_sequences: AtomicUsize::new(0),
            turning: Mutex::new(turning),
        }
    }

    /// Runs one token through `plan`, so that its sessions are there and have run once.
    ///
    /// # Errors
    ///
    /// Fails like a step.
    pub(crate) fn warm_up(&self, plan: &Plan) -> Result<(), RuntimeError> {
        let mut sequence = self.executor.sequence();
        let row = StepRow { sequence: &mut sequence, tokens: vec![0], wanted: Tokens::Last };
        let mut batch = StepBatch { rows: vec![row] };
        self.executor.forward(plan, &mut batch, &mut ()).map(drop)
    }

    /// Adds sequences of one request, all or none.
    ///
    /// # Errors
    ///
    /// Fails with the largest number of sequences when there would be more.
    pub(crate) fn add(&self, new: Vec<NewSequence>) -> Result<(), usize> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let count = new.len();
        let before = self.num_sequences.fetch_add(count, Ordering::AcqRel);
        if before + count > self.limits.max_sequences {
            self.num_sequences.fetch_sub(count, Ordering::AcqRel);
            return Err(self.limits.max_sequences);
        }
        inbox.extend(new);
        Ok(())
    }

    /// Returns whether a step waits to be run, and no other thread runs one.
    pub(crate) fn is_due(&self) -> bool {
        self.num_sequences.load(Ordering::Acquire) > 0
            && !matches!(self.turning.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Returns the time that the last step took.
    pub(crate) fn step_time(&self) -> Duration {
        Duration::from_micros(self.step_us.load(Ordering::Relaxed))
    }

    /// Runs a step, unless another thread does.
    pub(crate) fn step(&self, observer: &dyn Observer) {
        let mut turning = match self.turning.try_lock() {
            Ok(turning) => turning,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let began = Instant::now();
        let arrived = {
            let mut inbox: MutexGuard<'_, _> =
                self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *inbox)
        };
        turning.receive(arrived);
        let run = AssertUnwindSafe(|| turning.step(Runner { executor: &self.executor, observer }));
        if catch_unwind(run).is_err() {
            turning.fail_all();
        }
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.step_us.store(took, Ordering::Relaxed);
        // What arrived meanwhile counts as well.
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        self.num_sequences.store(turning.live.len() + inbox.len(), Ordering::Release);
        let mut state = turning.state();
        state.num_waiting += inbox.len();
        drop(inbox);
        let family = &self.executor.family().manifest.name;
        turning.ended.drain(..).for_each(|ended| observer.sequence_ended(family, &ended));
        if let Some(told) = &mut turning.told {
            observer.step_ran(family, &state.since(*told));
            *told = state;
        }
    }

    /// Takes the sequences out of what observers know, when the family is left.
    pub(crate) fn leave(&self, observer: &dyn Observer) {
        let mut turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = turning.told.take() {
            let left = State { num_preempted: told.num_preempted, ..State::default() };
            observer.step_ran(&self.executor.family().manifest.name, &left.since(told));
        }
    }
}

impl State {
    /// Returns the change since `before`.
    fn since(self, before: Self) -> StepChange {
        let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        StepChange {
            num_running: signed(self.num_running) - signed(before.num_running),
            num_waiting: signed(self.num_waiting) - signed(before.num_waiting),
            num_preempted: self.num_preempted - before.num_preempted,
            cache_bytes: bytes(self.cache_bytes) - bytes(before.cache_bytes),
        }
    }
}

impl Turning {
    fn receive(&mut self, arrived: Vec<NewSequence>) {
        for new in arrived {
            let key = SequenceKey(self.next_key);
            self.next_key += 1;
            let live = Live::new(new);
            self.steps.add(key, live.asked());
            self.live.insert(key, live);
        }
    }

    fn step(&mut self, runner: Runner<'_>) {
        self.drop_abandoned();
        let mut turns = self.steps.next();
        // Rows of a step are in the order of keys.
        turns.sort_unstable_by_key(|turn| turn.key);
        turns.iter_mut().filter(|turn| turn.start == 0).for_each(|turn| self.find(turn));
        for Group { plan, turns } in self.groups(turns) {
            self.run(runner, &plan, &turns);
        }
    }

    /// Removes sequences for which no one waits.
    fn drop_abandoned(&mut self) {
        let gone = self.live.iter().filter(|(_, live)| live.is_abandoned());
        let gone: Vec<SequenceKey> = gone.map(|(key, _)| *key).collect();
        gone.into_iter().for_each(|key| self.end(key));
    }

    /// Looks for the beginning of a prompt whose first turn this is among those that were read.
    fn find(&mut self, turn: &mut Turn) {
        let Some(live) = self.live.get_mut(&turn.key) else { return };
        let Some((sequence, num_cached)) = self.kept.find(live.reader()) else { return };
        if let Some(later) = self.steps.found(turn.key, num_cached) {
            live.found(num_cached);
            live.sequence = Some(sequence);
            *turn = later;
        }
    }

    /// Removes a sequence that has ended, whose prompt's cache is kept.
    fn end(&mut self, key: SequenceKey) {
        self.steps.remove(key);
        let Some(mut live) = self.live.remove(&key) else { return };
        self.ended.push(live.report(Instant::now()));
        if let Some(sequence) = live.sequence.take() {
            self.kept.keep(live.reader(), sequence);
        }
    }

    /// Removes a sequence that failed, with its cache.
    fn fail(&mut self, key: SequenceKey, error: ServeError) {
        self.steps.remove(key);
        if let Some(mut live) = self.live.remove(&key) {
            live.fail(error);
            self.ended.push(live.report(Instant::now()));
        }
    }

    fn state(&self) -> State {
        let (num_waiting, num_running) = self.steps.counts();
        let live = self.live.values().filter_map(|live| live.sequence.as_ref());
        State {
            num_running,
            num_waiting,
            num_preempted: self.steps.num_preempted(),
            cache_bytes: live.map(Sequence::cache_bytes).sum::<u64>() + self.kept.bytes(),
        }
    }

    /// Returns the turns by plan.
    fn groups(&self, turns: Vec<Turn>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for turn in turns {
            let Some(live) = self.live.get(&turn.key) else { continue };
            match groups.iter_mut().find(|group| group.plan == *live.plan()) {
                Some(group) => group.turns.push(turn),
                None => groups.push(Group { plan: live.plan().clone(), turns: vec![turn] }),
            }
        }
        groups
    }

    /// Runs turns together. If that fails, runs each of them alone, so that only the sequences at
    /// fault fail. Without memory for all, the sequence that can wait best gives its cache up.
    fn run(&mut self, runner: Runner<'_>, plan: &Plan, turns: &[Turn]) {
        // Turns before these may have taken the cache of one of them, which then waits.
        let is_current = |turn: &&Turn| {
            self.live.get(&turn.key).is_some_and(|live| live.position() == turn.start)
        };
        let turns: &[Turn] = &turns.iter().filter(is_current).copied().collect::<Vec<_>>();
        if turns.is_empty() {
            return;
        }
        match self.forward(runner.executor, plan, turns) {
            Ok(logits) => self.extend(turns, logits.as_ref()),
            Err(RuntimeError::MemoryLimit { .. }) if self.make_room() => {}
            Err(_) if turns.len() > 1 => {
                turns.iter().for_each(|turn| self.run(runner, plan, std::slice::from_ref(turn)));
            }
            Err(error) => {
                let name = &runner.executor.family().manifest.name;
                let error = reported(runner.observer, name, error);
                if let [turn] = turns {
                    self.fail(turn.key, error);
                }
            }
        }
    }

    /// Gives up a cache: that of a sequence that has ended, or else of one that can wait. Returns
    /// whether there was one.
    fn make_room(&mut self) -> bool {
        if self.kept.drop_oldest() {
            return true;
        }
        let Some(key) = self.steps.preempt() else { return false };
        if let Some(live) = self.live.get_mut(&key) {
            live.sequence = None;
        }
        true
    }

    /// Runs the tokens of `turns` through `plan`. Returns the logits after each turn that ends with
    /// its sequence's last token, if there is one.
    fn forward(
        &mut self,
        executor: &Executor,
        plan: &Plan,
        turns: &[Turn],
    ) -> Result<Option<Activation>, RuntimeError> {
        let mut batch = StepBatch::default();
        let now = Instant::now();
        for (key, live) in &mut self.live {
            let Some(turn) = turns.iter().find(|turn| turn.key == *key) else { continue };
            live.begin(now);
            let tokens = live.tokens[turn.start..turn.end].iter().copied().map(i64::from).collect();
            let sequence = live.sequence.get_or_insert_with(|| executor.sequence());
            let wanted = if turn.is_last { Tokens::Last } else { Tokens::None };
            batch.rows.push(StepRow { sequence, tokens, wanted });
        }
        let logits = executor.forward(plan, &mut batch, &mut ())?;
        // Others than f32 end the sequences, which would wait for their tokens.
        logits.as_ref().map(Activation::view).transpose()?;
        Ok(logits)
    }

    /// Adds the next token to each sequence whose last one ran.
    fn extend(&mut self, turns: &[Turn], logits: Option<&Activation>) {
        let now = Instant::now();
        let (shape, values) = logits.and_then(|logits| logits.view().ok()).unwrap_or_default();
        let width = shape.last().copied().unwrap_or(1).max(1);
        let mut rows = values.chunks_exact(width);
        for turn in turns {
            self.steps.ran(*turn);
            let Some(row) = turn.is_last.then(|| rows.next()).flatten() else { continue };
            let Some(live) = self.live.get_mut(&turn.key) else { continue };
            match live.extend(&mut self.sampler, row, now) {
                Ok(true) => self.steps.grew(turn.key),
                Ok(false) => self.end(turn.key),
                Err(error) => self.fail(turn.key, error),
            }
        }
    }

    /// Fails all sequences after a panic, which may have left any of them half changed.
    fn fail_all(&mut self) {
        let keys: Vec<SequenceKey> = self.live.keys().copied().collect();
        keys.into_iter().for_each(|key| self.fail(key, ServeError::Panicked));
        self.kept.clear();
    }
}
