//! Caches of prompts that were read, for later prompts that begin in the same way.
//!
//! Only whole chunks of a prompt are kept and found, since they have the same bits whoever reads
//! them. What a client's prompts left serves that client alone, unless prefixes are shared.

use std::collections::VecDeque;

use super::steps::CHUNK;
use crate::{family::ModuleId, runtime::Sequence};

/// Most prompts whose caches are kept.
const MOST: usize = 16;

/// Caches of prompts, the one used last behind.
#[derive(Debug)]
pub(super) struct Kept {
    sharing: Sharing,
    prompts: VecDeque<Prompt>,
}

/// Clients whose prompts may begin with what a client's prompt left in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// One client alone.
    Client,
    /// All clients. One can find out by the time to a first token what others asked.
    Everyone,
}

/// Tokens whose cache is kept, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) client: u64,
    /// Modules of the plan by which the tokens are read.
    pub(super) path: &'a [ModuleId],
    pub(super) tokens: &'a [u32],
}

#[derive(Debug)]
struct Prompt {
    owner: u64,
    path: Vec<ModuleId>,
    tokens: Vec<u32>,
    sequence: Sequence,
}

impl Kept {
    /// Creates an empty collection.
    pub(super) fn new(sharing: Sharing) -> Self {
        Self { sharing, prompts: VecDeque::new() }
    }

    /// Returns the number under which prompts of `client` are kept and found.
    fn owner(&self, client: u64) -> u64 {
        match self.sharing {
            Sharing::Client => client,
            Sharing::Everyone => 0,
        }
    }

    /// Keeps the cache of the prompt that `reader` has read, unless it is shorter than a chunk.
    pub(super) fn keep(&mut self, reader: Reader<'_>, mut sequence: Sequence) {
        let Reader { client, path, tokens } = reader;
        let owner = self.owner(client);
        let whole = tokens.len() / CHUNK * CHUNK;
        if whole == 0 || sequence.position() < whole {
            return;
        }
        sequence.truncate(whole);
        let tokens = &tokens[..whole];
        // A prompt with which the new one begins is of no use beside it.
        let is_part = |known: &Prompt| {
            known.owner == owner && known.path == path && tokens.starts_with(&known.tokens)
        };
        self.prompts.retain(|known| !is_part(known));
        let (path, tokens) = (path.to_vec(), tokens.to_vec());
        self.prompts.push_back(Prompt { owner, path, tokens, sequence });
        if self.prompts.len() > MOST {
            self.prompts.pop_front();
        }
    }

    /// Returns a copy of the cache of the tokens with which those of `reader` begin, and their
    /// number. At least one token of the reader is left. Returns `None` if nothing is found, or
    /// there is no memory for a copy.
    pub(super) fn find(&mut self, reader: Reader<'_>) -> Option<(Sequence, usize)> {
        let owner = self.owner(reader.client);
        let common = |known: &Prompt| match known.owner == owner && known.path == reader.path {
            true => common(&known.tokens, reader.tokens),
            false => 0,
        };
        let lengths = self.prompts.iter().map(common).enumerate();
        let (index, length) = lengths.max_by_key(|(_, length)| *length)?;
        if length == 0 {
            return None;
        }
        let found = self.prompts.remove(index)?;
        let copy = found.sequence.fork(length).ok();
        self.prompts.push_back(found);
        copy.map(|copy| (copy, length))
    }

    /// Returns the bytes of all kept caches.
    pub(super) fn bytes(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.sequence.cache_bytes()).sum()
    }

    /// Drops all caches.
    pub(super) fn clear(&mut self) {
        self.prompts.clear();
    }

    /// Drops the cache that was not used for the longest time. Returns whether there was one.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.prompts.pop_front().is_some()
    }
}

/// Returns the number of tokens of whole chunks with which both begin, so that at least one of
/// `tokens` is left.
pub(super) fn common(known: &[u32], tokens: &[u32]) -> usize {
    let pairs = known.iter().zip(tokens);
    let equal = pairs.take_while(|(known, token)| known == token).count();
    equal.min(tokens.len().saturating_sub(1)) / CHUNK * CHUNK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_chunks_are_common_and_a_token_is_left_to_run() {
        let known: Vec<u32> = (0..200).collect();
        assert_eq!(common(&known, &known), 192);
        assert_eq!(common(&known[..128], &known[..128]), 64);
        assert_eq!(common(&known[..64], &known), 64);
        assert_eq!(common(&known[..63], &known), 0);
        let mut other = known.clone();
        other[100] = 7;
        assert_eq!(common(&known, &other), 64);
    }
}
