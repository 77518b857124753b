//! Families of the repository, each loaded once.

use std::sync::{Arc, OnceLock};

use tessera::{assembly::Family, runtime::Executor};

use super::{root, runtime};

/// Returns the default pool's text family.
pub(crate) fn text_family() -> Arc<Family> {
    static FAMILY: OnceLock<Arc<Family>> = OnceLock::new();
    FAMILY
        .get_or_init(|| {
            let folder = root().join("models/text");
            Arc::new(Family::load(&folder).expect("`make setup` has fetched the pool"))
        })
        .clone()
}

/// Returns a small image family of random weights.
pub(crate) fn fashion_family() -> Arc<Family> {
    static FAMILY: OnceLock<Arc<Family>> = OnceLock::new();
    FAMILY
        .get_or_init(|| {
            let folder = root().join("tests/pool/fashion");
            Arc::new(Family::load(&folder).expect("the family is committed"))
        })
        .clone()
}

/// Returns an executor of the text family.
pub(crate) fn text_executor() -> Executor {
    Executor::new(runtime(), text_family())
}
