//! The plans that serving chooses from: profiles, qualities and the front that follows from them.
//!
//! Measures nothing. Start at [`plan_table`].

mod error;
mod front;
#[cfg(test)]
mod fuzz_tests;
mod profile;
mod promise;
mod quality;
mod shipped;

pub use error::OfferError;
pub use front::{candidate_plans, costed_graph, entry, plan_table};
pub use profile::{MachineKey, ModuleProfile, Profile, ProfileCache};
pub(crate) use profile::{module_digest, network_digest};
pub use promise::{BrokenPromise, Offer, broken_promises};
pub use quality::{CorpusRecord, Judgement, QualityRecords, Share, losses_of};
pub use shipped::{SHIPPED_FILE, ShippedProfile, ShippedProfiles};
