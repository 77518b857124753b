//! The manifest's settings of families that generate.

use serde::Deserialize;

/// Settings of generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationSpec {
    /// Type of the elements of caches.
    pub cache: CacheType,
}

/// Type of the elements of a cache of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 8-bit integers, with a scale for each channel of a head.
    Int8,
}

impl CacheType {
    /// Returns the size of an element in bytes.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Int8 => 1,
        }
    }
}
