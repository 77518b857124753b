//! Search for the scales of 8-bit caches.
//!
//! Texts run several times, each time with the scales that the time before suggests. What comes
//! out depends on the network and the plan alone.

use std::sync::Arc;

use super::{
    Executor, RuntimeError, StepBatch, StepRow, Tokens,
    cache::{ChannelScales, ModuleScales},
    forward::StepCaches,
};
use crate::{
    family::{CacheType, ModuleId},
    module::CacheSpec,
    plan::Plan,
};

/// Texts whose keys and values are measured, each in a sequence of its own, since what the first
/// token leaves is larger than all others: prose, white space, numbers, a list, code and data.
const TEXTS: [&str; 6] = [
    "In the morning the harbour was still grey, and only the ferry moved. Mrs Lindqvist counted \
     14 crates of apples, wrote the number into her book, and asked why there were not 16; nobody \
     on the quay could tell her. \"They were loaded on Thursday,\" said the boy.",
    "\n                    Table of Contents\n\n   1.  Introduction .... 3\n\t- Notes ---- 5\n",
    "Zinc melts at 419.5 °C, copper at 1084.6 °C. From 1990 to 2005 the price rose by 3.2 % a \
     year, and then fell to €2,750 per tonne (see table 7).",
    "What should I pack for a week in the mountains?\n\n1. A warm coat and two pairs of socks\n\
     2. A map, a whistle, and a torch\n3. Food for three days: rice, beans, dried fruit\n",
    "def largest(values):\n    best = None\n    for value in values:\n        if best is None or \
     value > best:\n            best = value\n    return best\n",
    "Le train part à sept heures; der Zug kommt um neun an. HTTP/1.1 200 OK\n{\"id\": 42, \
     \"tags\": [\"new\", \"red\"], \"open\": true}",
];

/// Number of texts at the beginning that have no special token before them.
const NUM_PLAIN: usize = 2;

/// Most tokens of a text.
const MOST: usize = 64;

/// Number of runs in which scales come near, with the first text alone; and most runs of all texts.
/// Scales settle after about four of those.
const FIRST_RUNS: usize = 4;
const MAX_RUNS: usize = 8;

impl Executor {
    /// Returns the scales of the 8-bit caches of `plan`, which are those of `modules`. Finds the
    /// ones that nobody has found yet.
    pub(super) fn scales_of(
        &self,
        plan: &Plan,
        modules: &[(ModuleId, CacheSpec)],
    ) -> Result<ModuleScales, RuntimeError> {
        if modules.iter().all(|(_, spec)| spec.cache_type == CacheType::F32) {
            return Ok(ModuleScales::new());
        }
        let known = self.caches().scales(modules);
        if unscaled(modules, &known).is_empty() {
            return Ok(known);
        }
        let _alone = self.caches().look_for_scales();
        // Another thread may have found them meanwhile.
        let known = self.caches().scales(modules);
        let open = unscaled(modules, &known);
        if open.is_empty() {
            return Ok(known);
        }
        let search = Search { plan, modules, open, scales: known };
        let scales = self.found_scales(search)?;
        self.caches().keep_scales(&scales);
        Ok(scales)
    }

    fn found_scales(&self, mut search: Search<'_>) -> Result<ModuleScales, RuntimeError> {
        let texts = self.measured_texts();
        let first = std::iter::repeat_n(&texts[..1], FIRST_RUNS);
        search.suggest()?;
        for texts in first.chain(std::iter::repeat_n(&texts[..], MAX_RUNS)) {
            let is_settled = self.learn_scales(&mut search, texts)?;
            search.suggest()?;
            if is_settled && texts.len() > 1 {
                break;
            }
        }
        Ok(search.scales)
    }

    /// Runs `texts` and fits the scales of a search to what they leave in the caches. Returns
    /// whether all of them hardly changed.
    fn learn_scales(
        &self,
        search: &mut Search<'_>,
        texts: &[Vec<i64>],
    ) -> Result<bool, RuntimeError> {
        let Search { plan, modules, open, scales } = search;
        let mut levels: Vec<Vec<Vec<i8>>> = vec![Vec::new(); open.len()];
        for tokens in texts {
            let mut sequence = self.sequence();
            let (tokens, wanted) = (tokens.clone(), Tokens::None);
            let row = StepRow { sequence: &mut sequence, tokens, wanted };
            let caches = StepCaches { modules, scales: scales.clone() };
            self.forward_scaled(plan, caches, &mut StepBatch { rows: vec![row] }, &mut ())?;
            for ((id, _), levels) in open.iter().zip(&mut levels) {
                append(levels, sequence.levels(*id));
            }
        }
        let mut is_settled = true;
        for ((_, scales), levels) in open.iter_mut().zip(&levels) {
            is_settled &= scales.learn(levels);
        }
        Ok(is_settled)
    }

    /// Returns the tokens of the texts, or any tokens for a family without a tokenizer.
    fn measured_texts(&self) -> Vec<Vec<i64>> {
        let manifest = &self.family().manifest;
        let most = MOST.min(manifest.limits.max_tokens);
        let coder = self.family().language().map(|language| &language.coder);
        let specials: Vec<u32> = coder.map_or_else(Vec::new, |coder| {
            coder.special_texts().filter_map(|special| coder.id_of(special)).collect()
        });
        let texts = TEXTS.iter().enumerate().map(|(number, text)| {
            let ids = coder.and_then(|coder| coder.encode_prompt(text).ok()).unwrap_or_default();
            let special = number.checked_sub(NUM_PLAIN).and_then(|index| specials.get(index));
            let mut tokens: Vec<i64> =
                special.copied().into_iter().chain(ids).map(i64::from).collect();
            if tokens.is_empty() {
                let numbers = number * MOST..(number + 1) * MOST;
                tokens = numbers.map(|number| any(number, manifest.output.width)).collect();
            }
            tokens.truncate(most);
            tokens
        });
        texts.collect()
    }
}

/// Search for the scales of a plan's caches.
struct Search<'a> {
    plan: &'a Plan,
    modules: &'a [(ModuleId, CacheSpec)],
    /// Scales that are looked for.
    open: Vec<(ModuleId, ChannelScales)>,
    /// Scales of all modules, as inputs.
    scales: ModuleScales,
}

impl Search<'_> {
    /// Makes the scales so far inputs of the next run.
    fn suggest(&mut self) -> Result<(), RuntimeError> {
        for (id, scales) in &self.open {
            self.scales.insert(*id, Arc::new(scales.to_values()?));
        }
        Ok(())
    }
}

/// Returns those of `modules` with an 8-bit cache that have no scales in `known`, with scales to
/// begin with.
fn unscaled(
    modules: &[(ModuleId, CacheSpec)],
    known: &ModuleScales,
) -> Vec<(ModuleId, ChannelScales)> {
    let is_open = |(id, spec): &&(ModuleId, CacheSpec)| {
        spec.cache_type == CacheType::Int8 && !known.contains_key(id)
    };
    modules.iter().filter(is_open).map(|(id, spec)| (*id, ChannelScales::new(*spec))).collect()
}

/// Adds the levels of a sequence behind those of others, head by head.
fn append(levels: &mut Vec<Vec<i8>>, more: Vec<Vec<i8>>) {
    levels.resize_with(more.len(), Vec::new);
    levels.iter_mut().zip(more).for_each(|(levels, more)| levels.extend(more));
}

/// Returns a token below `num_words` that `number` chooses.
fn any(number: usize, num_words: usize) -> i64 {
    let hashed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    i64::try_from(hashed % num_words.max(1) as u64).unwrap_or(0)
}
