//! Blocks of cache, leased from the ledger of the memory limit.

use std::sync::Arc;

use crate::runtime::{RuntimeError, residents::Residents};

/// Number of positions of a block.
pub(super) const BLOCK: usize = 32;

/// Memory of a sequence's blocks, which goes back to the ledger when this is dropped.
#[derive(Debug)]
pub(super) struct Blocks {
    residents: Arc<Residents>,
    bytes: u64,
}

impl Blocks {
    /// Creates a lease of no blocks.
    pub(super) fn new(residents: Arc<Residents>) -> Self {
        Self { residents, bytes: 0 }
    }

    /// Leases `bytes` more.
    ///
    /// # Errors
    ///
    /// Fails when they do not fit under the memory limit, even without idle sessions.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), RuntimeError> {
        if bytes > 0 {
            self.residents.lease_cache(bytes)?;
            self.bytes += bytes;
        }
        Ok(())
    }

    /// Gives `bytes` back.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.residents.free_cache(bytes);
        self.bytes -= bytes;
    }

    /// Returns the residents that lend the blocks.
    pub(super) fn residents(&self) -> Arc<Residents> {
        self.residents.clone()
    }

    /// Returns the number of leased bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.residents.free_cache(self.bytes);
    }
}

/// Returns the number of blocks that hold `positions`.
pub(super) fn blocks_for(positions: usize) -> usize {
    positions.div_ceil(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::residents::{Held, Process};

    /// Returns residents of a process of 10 bytes beside what is leased.
    fn residents(limit: u64) -> Arc<Residents> {
        let held = || Held { bytes: 10, file_bytes: 0 };
        Arc::new(Residents::of_process(Some(limit), Process { held, give_back: || {} }))
    }

    #[test]
    fn a_lease_beyond_the_limit_is_refused_and_one_that_is_dropped_makes_room() {
        let residents = residents(100);
        let (mut first, mut second) =
            (Blocks::new(residents.clone()), Blocks::new(residents.clone()));
        first.grow(60).expect("room");
        assert!(second.grow(41).is_err());
        assert_eq!((second.bytes(), residents.cache_bytes()), (0, 60));
        drop(first);
        second.grow(41).expect("room after the first went back");
        assert_eq!(residents.cache_bytes(), 41);
    }

    #[test]
    fn blocks_hold_whole_numbers_of_positions() {
        assert_eq!([0, 1, 32, 33].map(blocks_for), [0, 1, 1, 2]);
    }
}
