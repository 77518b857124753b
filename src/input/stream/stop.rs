//! Stop strings in bytes that come in pieces.
//!
//! Bytes are read one by one by an automaton for each string (Knuth, Morris and Pratt, 1977), so
//! that borders of tokens make no difference. Of strings that end at the same byte, the longest
//! counts.

use std::sync::Arc;

/// Most stop strings of a request; OpenAI's API has four.
const MAX_STRINGS: usize = 16;

/// Most bytes of a stop string.
const MAX_BYTES: usize = 1024;

/// Error of stop strings that are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty string, which would stop every answer.
    #[error("stop string {index} is empty; valid are 1 to {MAX_BYTES} bytes")]
    Empty {
        /// Index of the string.
        index: usize,
    },
    /// A long string.
    #[error("stop string {index} has {bytes} bytes; valid are 1 to {MAX_BYTES}")]
    Long {
        /// Index of the string.
        index: usize,
        /// Number of its bytes.
        bytes: usize,
    },
    /// Many strings.
    #[error("there are {found} stop strings; valid are up to {MAX_STRINGS}")]
    Many {
        /// Number of the strings.
        found: usize,
    },
}

/// Strings that end an answer before them.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

/// A stop string with its automaton.
#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// Number of bytes that are both a start and an end of the first `index + 1` bytes.
    borders: Vec<usize>,
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut borders = vec![0; bytes.len()];
        let mut matched = 0;
        for index in 1..bytes.len() {
            while matched > 0 && bytes[index] != bytes[matched] {
                matched = borders[matched - 1];
            }
            matched += usize::from(bytes[index] == bytes[matched]);
            borders[index] = matched;
        }
        Self { bytes: bytes.to_vec(), borders }
    }

    /// Returns the number of bytes matched once `byte` follows `matched` bytes, not all of them.
    fn next(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

impl StopStrings {
    /// Creates the stop strings `strings`.
    ///
    /// # Errors
    ///
    /// Fails for an empty or a long string, or for many.
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Result<Self, StopError> {
        if strings.len() > MAX_STRINGS {
            return Err(StopError::Many { found: strings.len() });
        }
        let pattern = |(index, string): (usize, &S)| match string.as_ref().len() {
            0 => Err(StopError::Empty { index }),
            bytes if bytes > MAX_BYTES => Err(StopError::Long { index, bytes }),
            _ => Ok(Pattern::new(string.as_ref().as_bytes())),
        };
        let patterns = strings.iter().enumerate().map(pattern).collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }
}

/// Bytes that are certain to come before a stop string.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// Bytes that no stop string takes.
    pub(super) bytes: Vec<u8>,
    /// Index of the stop string that was found, if any.
    pub(super) stop: Option<usize>,
}

/// Search for stop strings in an answer.
#[derive(Debug)]
pub(super) struct StopFinder {
    stops: StopStrings,
    /// Number of bytes matched of each string.
    matched: Vec<usize>,
    /// Bytes that could be the start of a stop string.
    held: Vec<u8>,
}

impl StopFinder {
    pub(super) fn new(stops: StopStrings) -> Self {
        let matched = vec![0; stops.patterns.len()];
        Self { stops, matched, held: Vec::new() }
    }

    /// Reads `bytes`. Nothing may be read after a stop string.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Released {
        for byte in bytes {
            self.held.push(*byte);
            if let Some(stop) = self.step(*byte) {
                let length = self.stops.patterns[stop].bytes.len();
                self.held.truncate(self.held.len() - length);
                return Released { bytes: std::mem::take(&mut self.held), stop: Some(stop) };
            }
        }
        let num_held = self.matched.iter().copied().max().unwrap_or(0);
        let released = self.held.drain(..self.held.len() - num_held).collect();
        Released { bytes: released, stop: None }
    }

    /// Moves all automata on by `byte` and returns the longest string that ends with it, if any.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut found: Option<usize> = None;
        for (index, pattern) in self.stops.patterns.iter().enumerate() {
            let matched = pattern.next(self.matched[index], byte);
            self.matched[index] = matched;
            let is_longer = |other: usize| self.stops.patterns[other].bytes.len() < matched;
            if matched == pattern.bytes.len() && found.is_none_or(is_longer) {
                found = Some(index);
            }
        }
        found
    }

    /// Returns the bytes that were held back.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}
