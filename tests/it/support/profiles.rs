//! Profiles that are computed, not measured: the same on every machine, and there at once.

use sha2::{Digest, Sha256};
use tessera::{
    assembly::Family,
    family::{ModuleId, ModuleKind},
    offer::{MachineKey, ModuleProfile, Profile, ProfileCache},
    plan::Grid,
};

/// Batches and lengths of a computed profile; lengths end at the family's longest text.
const BATCHES: [usize; 2] = [1, 4];
const TOKENS: [usize; 3] = [8, 64, 256];

/// Time of any run in seconds, and what each byte of weights adds to it for each token.
const SECONDS: f64 = 5e-5;
const SECONDS_PER_BYTE: f64 = 1e-11;

/// Bytes of activations for each token.
const ACTIVATION_BYTES: f64 = 16_384.0;

/// Version of the measuring method, as in `src/offer/profile.rs`.
const VERSION: u8 = 2;

/// Returns the profile of `family`.
pub(crate) fn computed(family: &Family) -> Profile {
    computed_cache(family).profile_of(family).unwrap_or_else(|missing| {
        panic!(
            "{missing:?} are looked for under other digests: `digest_of` in this file must do \
             what `module_digest` does in src/offer/profile.rs"
        )
    })
}

/// Returns a cache with the profile of `family`. Networks from outside count as proven.
pub(crate) fn computed_cache(family: &Family) -> ProfileCache {
    let mut cache = ProfileCache::empty(machine_key());
    for id in (0..family.graph.modules().len()).map(ModuleId) {
        if let Some(digest) = digest_of(family, id) {
            cache.modules.insert(digest, costs_of(family, id));
        }
    }
    let networks = (0..family.num_networks()).map(|index| family.network(index));
    let proven = networks.filter(|network| network.needs_proof());
    cache.proven.extend(proven.map(|network| sha256(&network.fingerprint())));
    cache
}

/// Returns the key of the machine of computed profiles.
pub(crate) fn machine_key() -> MachineKey {
    let (processor, runtime) = ("computed".into(), "any".into());
    MachineKey { processor, num_threads: 2, spin: false, runtime }
}

/// Returns the costs of module `id`. A stem looks rows up and does not multiply by its weights.
fn costs_of(family: &Family, id: ModuleId) -> ModuleProfile {
    let limits = &family.manifest.limits;
    let max_tokens = if family.manifest.image.is_some() { 1 } else { limits.max_tokens };
    let mut tokens = TOKENS.map(|tokens| tokens.min(max_tokens)).to_vec();
    tokens.dedup();
    let is_stem = family.graph.module(id).kind == ModuleKind::Stem;
    let weights = if is_stem { 0.0 } else { family.weight_bytes(id) as f64 };
    let grid = |cost: &dyn Fn(f64) -> f64| {
        let cells = BATCHES.iter().flat_map(|batch| tokens.iter().map(move |token| batch * token));
        let values = cells.map(|cell| cost(cell as f64)).collect();
        Grid::new(BATCHES.to_vec(), tokens.clone(), values).expect("a grid")
    };
    ModuleProfile {
        latency_seconds: grid(&|cell| SECONDS + SECONDS_PER_BYTE * weights * cell),
        activation_bytes: grid(&|cell| ACTIVATION_BYTES * cell),
    }
}

/// Returns the digest under which module `id` is cached, or None if it is the identity.
fn digest_of(family: &Family, id: ModuleId) -> Option<String> {
    let mut key = family.cost_key(id)?;
    key.extend(family.manifest.limits.max_tokens.to_le_bytes());
    key.push(VERSION);
    Some(sha256(&key))
}

/// Returns the SHA-256 of `bytes`.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
